"""Several augmented views of the same images in one batch, which learning without labels compares."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets.batch import Batch
from evaluators.datasets.decoding import ToChannels
from evaluators.datasets.loaders import ArrayLoader, Data, Loader
from evaluators.datasets.preprocessing import Preprocessing
from evaluators.datasets.samples import ImageOnly, SampleLoader, classified

How = Literal["data", "byol"]
"""Views as the section `data` augments, or by the transforms of BYOL."""


class Views:
    """A split whose batches have a tuple of views as inputs, each (N, C, H, W): the same images, augmented anew.

    Views 0, 2, 4, ... and 1, 3, 5, ... are drawn alike, each by itself.
    """

    def __init__(self, data: Data, count: int, how: How = "data", held_out: bool = False) -> None:
        """Views of the training images, or of the held-out ones in `data.test`, `count` of each.

        Raises:
            InputError: the data are not augmented.
        """
        split = data.test if held_out else data.train
        assert split is not None and data.train is not None
        self.loaders: Sequence[Loader]
        if how == "byol":
            each = [byol(data.preprocessing, blur, solarize) for blur, solarize in ((1.0, 0.0), (0.1, 0.2))]
            files = _as_files(split)
            files.training = ImageOnly(_Several([each[view % 2] for view in range(count)]))
            self.loaders = (files,)
        elif isinstance(split, ArrayLoader):
            self.loaders = [_view(split, data.train, view) for view in range(count)]
        else:
            files = _as_files(split)
            training = _as_files(data.train).training
            assert isinstance(training, ImageOnly)
            files.training = ImageOnly(_Several([training.transform] * count))
            self.loaders = (files,)
        self.batch_size, self.num_samples = split.batch_size, split.num_samples
        if held_out:  # batches of one size, so that next to no image is left out
            self.batch_size = self.num_samples // -(-self.num_samples // self.batch_size)
            for loader in self.loaders:
                loader.batch_size = self.batch_size
        elif how == "data" and not isinstance(split, ArrayLoader):
            first, second, *_ = views_of(next(self.epoch(0)))
            if torch.equal(first, second):  # what the transforms do is theirs to know
                raise InputError("data.augment: got none, and views of an image must differ; allowed: timm")

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return max(1, self.num_samples // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the shuffled batches of an epoch from batch `start` on; a short last batch is left out."""
        for first, *others in zip(*(loader.epoch(epoch, start) for loader in self.loaders), strict=True):
            images = first.inputs
            assert isinstance(images, Tensor)
            views = images.unbind(1) if images.ndim == 5 else (images, *(other.inputs for other in others))
            yield replace(first, inputs=views)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of one fixed order and augmentation."""
        return self.epoch(0)


def views_of(batch: Batch) -> tuple[Tensor, ...]:
    """Return the views of a batch of `Views`, each (N, C, H, W)."""
    assert isinstance(batch.inputs, tuple)
    return batch.inputs


def byol(preprocessing: Preprocessing, blur: float, solarize: float) -> Callable[[Any], Tensor]:
    """Return BYOL's transform of an image to a normalised view (C, H, W) (Grill et al. 2020, appendix B).

    Args:
        preprocessing: the size, mean and standard deviation of views.
        blur: probability of blurring; 1.0 for one view of a pair, 0.1 for the other.
        solarize: probability of inverting bright pixels; 0.0 and 0.2.
    """
    from torchvision.transforms import v2

    channels, height, width = preprocessing.input_size
    kernel = max(3, min(height, width) // 10 | 1)  # 23 at 224 pixels, as published
    transform: Callable[[Any], Tensor] = v2.Compose(
        [
            ToChannels(channels),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop((height, width), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], blur),
            v2.RandomSolarize(0.5, solarize),
            v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
            v2.ToPureTensor(),
        ]
    )
    return transform


def _view(split: ArrayLoader, training: Loader, view: int) -> ArrayLoader:
    assert isinstance(training, ArrayLoader)
    if training.augment in (None, "none"):
        raise InputError("data.augment: got none, and views of an image must differ; allowed: shift, crop_flip, flip")
    part = copy.copy(split)
    part.augment, part.view = training.augment, view
    return part


def _as_files(loader: Loader) -> SampleLoader:
    """Return a loader that transforms each image of `loader` by itself."""
    if isinstance(loader, SampleLoader):
        if not isinstance(loader.evaluation, ImageOnly):
            raise InputError("data: views are made of images with classes; these have targets that move with the image")
        return copy.copy(loader)
    assert isinstance(loader, ArrayLoader)
    return SampleLoader(
        classified(_InMemory(loader.images.cpu()), loader.labels.tolist()),
        evaluation=ImageOnly(_Several([])),
        training=None,
        batch_size=loader.batch_size,
        workers=0,
        seed=loader.seed,
    )


@dataclass(frozen=True)
class _InMemory:
    """Reads one of the images uint8 (N, H, W, C) as image files are read."""

    images: Tensor

    def __call__(self, index: int) -> Any:
        from PIL import Image

        pixels: np.ndarray[Any, Any] = self.images[index].numpy()
        return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).convert("RGB")


@dataclass(frozen=True)
class _Several:
    """Makes several views of an image: (views, C, H, W)."""

    transforms: Sequence[Callable[[Any], Tensor]]

    def __call__(self, image: Any) -> Tensor:
        return torch.stack([transform(image) for transform in self.transforms])
