"""Images made of scikit-learn's real digits, pasted on textured backgrounds: for segmentation and for detection."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision import tv_tensors

from compress.core.config import Numbers
from compress.core.progress import track
from evaluators.datasets.dataset import DataFacts
from evaluators.datasets.digits import digits
from evaluators.datasets.images import Positive, Unit
from evaluators.datasets.joint import boxed
from evaluators.datasets.preprocessing import Statistics
from evaluators.datasets.sample_sets import BACKGROUND, SampleImages, SampleSet
from evaluators.datasets.samples import Samples

Array = np.ndarray[Any, Any]
Box = tuple[int, int, int, int]

CLASS_NAMES = [BACKGROUND, *map(str, range(10))]
_SIDES = (0.2, 0.45)  # of a pasted image, in sides of the scene; a digit fills about two thirds of it
_BLOCK = 500  # scenes that are made at once
_MOST = 5  # digits in a scene
_TRIES = 8  # at finding a place
_HIDDEN = 0.2  # share of a digit's box, at most, that lies within the box of another
_INK = 0.4  # from which share of the digit's colour a pixel is the digit's


@dataclass(frozen=True)
class Scenes:
    """Scenes that were made.

    Attributes:
        images: uint8 (N, 3, H, W).
        masks: uint8 (N, H, W): 0 where there is background, 1 to 10 for the digits 0 to 9.
        boxes: of each scene, int64 (M, 4): left, top, right, bottom in pixels, right and bottom excluded.
        labels: of each scene, int64 (M,), from 1.
    """

    images: Tensor
    masks: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]


class DigitScenes(SampleImages):
    """Made images: real digits of scikit-learn, of many sizes, at random places on backgrounds of random texture.

    Training and test images are made of other digits each, as `digits` divides them. They lie in memory, and are the
    same for every seed of a recipe; `scenes` gives others.
    """

    image_size: int = Field(64, ge=32, le=512, description="pixels a side that the images are made with")
    channels: Annotated[Literal[1, 3], Numbers()] = Field(3, description="1 grey, 3 colour")
    batch_size: int = Field(32, ge=1, description="images in a training batch")
    eval_batch_size: int = Field(64, ge=1, description="images in an evaluation batch")
    samples: int = Field(1000, ge=1, le=100_000, description="training images that are made")
    test_samples: int = Field(250, ge=1, le=100_000, description="test images that are made")
    scenes: int = Field(0, ge=0, lt=2**31, description="seed of the images: another number makes others")
    flip: Unit = Field(0.0, description="probability that a training image is mirrored")
    scale: tuple[Positive, Positive] = Field(
        (0.8, 1.25), description="training images are scaled by a factor from this range, then cut or filled up"
    )
    color_jitter: float = Field(0.0, ge=0, le=1, description="strength of colour jitter of training images")
    workers: int = Field(0, ge=0, description="processes that transform images; 0 does it in this one")

    def describe(self) -> DataFacts:
        """Return ten digits and the background, and the size of the images."""
        return DataFacts(len(CLASS_NAMES), self.image_size, self.channels)

    def made(self) -> tuple[Scenes, Scenes]:
        """Return training and test scenes."""
        return _made(self.image_size, self.samples, self.test_samples, self.scenes)


def sample_set(train: Scenes, test: Scenes, target: type[Masks] | type[Boxes]) -> SampleSet:
    """Return the scenes with one kind of target."""
    split, other = (Samples(target(each), range(len(each.images)), name="scene {}".format) for each in (train, test))
    return SampleSet(split, other, CLASS_NAMES, _statistics(train.images))


@dataclass(frozen=True)
class Masks:
    """Reads images with their masks."""

    scenes: Scenes

    def __call__(self, index: int) -> tuple[Tensor, tv_tensors.Mask]:
        """Return an image uint8 (3, H, W) and its mask."""
        return self.scenes.images[index], tv_tensors.Mask(self.scenes.masks[index])


@dataclass(frozen=True)
class Boxes:
    """Reads images with their boxes."""

    scenes: Scenes

    def __call__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return an image uint8 (3, H, W), and its boxes and labels."""
        image = self.scenes.images[index]
        return image, boxed(self.scenes.boxes[index], self.scenes.labels[index], image.shape[-2:])


@functools.lru_cache(maxsize=2)
def _made(size: int, samples: int, test_samples: int, seed: int) -> tuple[Scenes, Scenes]:
    found = digits()
    train, test = (
        _joined(
            [
                scenes(images, labels, min(_BLOCK, count - start), size, np.random.default_rng([seed, split, start]))
                for start in track(range(0, count, _BLOCK), "making images")
            ]
        )
        for split, (images, labels, count) in enumerate(
            (
                (found.train_images, found.train_labels, samples),
                (found.test_images, found.test_labels, test_samples),
            )
        )
    )
    return train, test


def _joined(parts: list[Scenes]) -> Scenes:
    images, masks = torch.cat([each.images for each in parts]), torch.cat([each.masks for each in parts])
    boxes, labels = [box for each in parts for box in each.boxes], [label for each in parts for label in each.labels]
    return Scenes(images, masks, boxes, labels)


def _statistics(images: Tensor) -> Statistics:
    """Return mean and standard deviation of each channel of uint8 (N, 3, H, W), pixels in 0..1."""
    pixels = images[:1000].transpose(0, 1).flatten(1).double() / 255
    return tuple(pixels.mean(1).tolist()), tuple(pixels.std(1).tolist())


def scenes(images: Tensor, labels: Tensor, count: int, size: int, generator: np.random.Generator) -> Scenes:
    """Make scenes of `size` pixels a side of digits uint8 (N, 8, 8, 1), each of 1 to 5 of them.

    Digits are brighter than what they lie on, in colours of their own. One may cover a fifth of another's box.
    """
    pixels = _textures(count, size, generator)
    masks = np.zeros((count, size, size), np.uint8)
    boxes: list[list[Box]] = [[] for _ in range(count)]
    classes: list[list[int]] = [[] for _ in range(count)]
    for scene, digit, ink in _digits(images, count, size, generator):
        height, width = ink.shape
        spot = _free_spot(height, width, boxes[scene], size, generator.random((_TRIES, 2)))
        if spot is None:
            continue
        left, top, right, bottom = spot
        colour = generator.uniform(0.6, 1.0, (3, 1, 1)).astype(np.float32)
        under = pixels[scene, :, top:bottom, left:right]
        under += ink * (colour - under)
        number = int(labels[digit]) + 1
        masks[scene, top:bottom, left:right][ink >= _INK] = number
        boxes[scene].append(spot)
        classes[scene].append(number)
    return Scenes(
        torch.from_numpy((pixels * 255).round().astype(np.uint8)),
        torch.from_numpy(masks),
        [torch.tensor(each) for each in boxes],
        [torch.tensor(each) for each in classes],
    )


def _textures(count: int, size: int, generator: np.random.Generator) -> Array:
    """Return dark backgrounds float32 (N, 3, size, size) in 0..0.5: a colour each, with spots of three sizes."""
    found: Array = np.zeros((count, 3, size, size), np.float32)
    found += generator.uniform(0.1, 0.35, (count, 3, 1, 1)).astype(np.float32)
    for grid, strength in ((4, 0.1), (16, 0.08)):
        noise = torch.from_numpy(generator.standard_normal((count, 3, grid, grid), np.float32))
        found += strength * F.interpolate(noise, (size, size), mode="bilinear").numpy()
    found += 0.03 * generator.standard_normal((count, 1, size, size), np.float32)
    return found.clip(0, 0.5)


def _digits(images: Tensor, count: int, size: int, generator: np.random.Generator) -> Iterator[tuple[int, int, Array]]:
    """Yield (scene, number of the digit, its ink float32 (H, W) in 0..1, without empty margins), scene by scene."""
    scene = np.repeat(np.arange(count), generator.integers(1, _MOST + 1, count))
    digit = generator.integers(0, len(images), len(scene))
    side = generator.integers(round(_SIDES[0] * size), round(_SIDES[1] * size) + 1, len(scene))
    inks: dict[int, Array] = {}
    for each in np.unique(side):  # all of one size at once
        members = np.flatnonzero(side == each)
        pixels = images[digit[members]].permute(0, 3, 1, 2).float() / 255
        enlarged = F.interpolate(pixels, (int(each), int(each)), mode="bilinear")[:, 0].numpy()
        inks |= dict(zip(members.tolist(), enlarged, strict=True))
    for number in range(len(scene)):
        ink = inks[number]
        rows, columns = (np.flatnonzero((ink >= _INK).any(axis)) for axis in (1, 0))
        yield int(scene[number]), int(digit[number]), ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_spot(height: int, width: int, taken: list[Box], size: int, draws: Array) -> Box | None:
    """Return the first drawn place at which nothing is hidden too much; None where there is none."""
    for down, along in draws:
        left, top = int(along * (size - width + 1)), int(down * (size - height + 1))
        spot = (left, top, left + width, top + height)
        if all(_shared(spot, other) <= _HIDDEN for other in taken):
            return spot
    return None


def _shared(one: Box, other: Box) -> float:
    """Return the area that two boxes share, in that of the smaller one."""
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(0, width) * max(0, height) / min(areas)
