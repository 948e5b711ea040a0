"""Sets of images that fit in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from compress.core.errors import InputError
from compress.core.registry import is_ours
from evaluators.datasets.dataset import DataFacts
from evaluators.datasets.images import Images
from evaluators.datasets.loaders import ArrayLoader, Data
from evaluators.datasets.preprocessing import Statistics, choose

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig

_SAMPLE = 10_000  # images that the mean and the standard deviation are measured on


@dataclass(frozen=True)
class ArraySet:
    """Images uint8 (N, H, W, C) and labels int64 (N,), checked."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are below it."""
        return len(self.class_names)

    @property
    def image_size(self) -> int | None:
        """Pixels a side, None when the images are not square."""
        height, width = self.train_images.shape[1:3]
        return int(height) if height == width else None

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel over training images, pixels in 0..1."""
        step = -(-len(self.train_images) // _SAMPLE)
        pixels = self.train_images[::step].flatten(0, 2).double() / 255
        return tuple(pixels.mean(0).tolist()), tuple(pixels.std(0).clamp_min(1e-3).tolist())


class Arrays(Images):
    """Sets that lie in memory as bytes; augmented a batch at a time."""

    augment: Literal["none", "flip", "shift", "crop_flip"] = Field(
        "crop_flip", description="shift and crop move the image by up to an eighth of its side; flip mirrors it"
    )

    @abstractmethod
    def open(self) -> ArraySet:
        """Read the set; it is asked for twice, so the last one should stay in memory. InputError where it is wrong."""

    def describe(self) -> DataFacts:
        """Return the set's facts; the recipe's image size and channels win."""
        found = self._opened()
        channels = self.channels or int(found.test_images.shape[-1])
        return DataFacts(found.num_classes, self.image_size or found.image_size, channels)

    def load(
        self,
        task: TaskConfig,
        preprocessing_hint: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> Data:
        """Return loaders whose images lie in memory."""
        hint = dict(preprocessing_hint or {})
        found = self._opened()
        own = tuple(hint["input_size"][1:]) if hint.get("fixed_input_size") and hint.get("input_size") else None
        sides = self._sides(found, own if image_size is None else (image_size, image_size))
        native = int(found.test_images.shape[-1])
        preprocessing = choose(self, hint, sides, native, measured=found.statistics, crop_pct=1.0)
        train, test = (
            ArrayLoader(
                *limited(images, labels, limit),
                preprocessing=preprocessing,
                batch_size=batch_size,
                augment=augment,
                seed=seed,
            )
            for images, labels, limit, batch_size, augment in (
                (found.train_images, found.train_labels, self.limit_train, self.batch_size, self.augment),
                (found.test_images, found.test_labels, self.limit_test, self.eval_batch_size, None),
            )
        )
        bound = task.bind(found.num_classes, preprocessing.input_size)
        return Data(bound, preprocessing, train, test, found.class_names)

    def _opened(self) -> ArraySet:
        """Return the set; that of a third party is checked."""
        found = self.open()
        if not is_ours(self) and (wrong := _wrong(found)):
            raise InputError(f"data: {self.name}.open: {wrong}")
        return found

    def _sides(self, found: ArraySet, model: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return height and width of the model's input: the recipe's, the model's, or the images' own."""
        if self.image_size is None and model is not None:
            return model
        side = self.image_size or found.image_size
        if side is None:
            shape = tuple(found.train_images.shape[1:3])
            raise InputError(
                f"data.image_size: the images are {shape}, not square; give the size to resize them to, or "
                "model.input_size with another height than width"
            )
        return (side, side)


def _wrong(found: Any) -> str | None:
    """Return, as a sentence, what is wrong with a set that a third party has opened; None where nothing is."""
    if not isinstance(found, ArraySet):
        return f"it gave {type(found).__name__}; allowed: evaluators.datasets.arrays.ArraySet"
    names = found.class_names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return f"class_names are {names!r:.80}; allowed: a list of one text for each class"
    splits = (("train", found.train_images, found.train_labels), ("test", found.test_images, found.test_labels))
    for split, images, labels in splits:
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
            return f"{split}_images are {_described(images)}; allowed: a tensor uint8 (N, H, W, C) with N > 0"
        if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
            return f"{split}_images are {_described(images)}; the channels come last: images.movedim(1, -1)"
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            return f"{split}_labels are {_described(labels)}; allowed: a tensor int64 ({len(images)},)"
        for number in (int(labels.min()), int(labels.max())):
            if not 0 <= number < len(names):
                return f"{split}_labels hold {number}; allowed: 0 to {len(names) - 1}, for class_names has {len(names)}"
    if found.train_images.shape[1:] != found.test_images.shape[1:]:
        shapes = [tuple(images.shape[1:]) for _, images, _ in splits]
        return f"train_images are {shapes[0]} each, test_images {shapes[1]}"
    return None


def _described(value: Any) -> str:
    shape = tuple(getattr(value, "shape", ()))
    return f"{value.dtype} {shape}" if isinstance(value, Tensor) else f"{type(value).__name__} {shape or ''}".strip()


def limited(images: Tensor, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    """Return the first `limit` samples, as many of each class as can be."""
    if limit is None or limit >= len(labels):
        return images, labels
    kept = balanced(labels.numpy(), limit)
    return images[kept], labels[kept]


def balanced(labels: np.ndarray[Any, Any], limit: int) -> Tensor:
    """Return the indices, ascending, of `limit` samples taken from the classes in turn."""
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return torch.from_numpy(np.sort(np.lexsort((labels, turn))[:limit]))
