"""Batches: the same for the same seed and epoch, and an epoch may start in its middle."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluators.datasets.batch import Batch, moved
from evaluators.datasets.preprocessing import Preprocessing

if TYPE_CHECKING:
    from evaluators.tasks.task import Task

_GREY = (0.299, 0.587, 0.114)
_SMALL = 2**30  # bytes of images that any accelerator has room for


class Loader(Protocol):
    """A split of a data set. Where it holds images, these are float32, normalised; targets are as the task has them.

    The inputs of a training batch are tensors of their own, which whoever takes the batch may change.
    """

    batch_size: int
    num_samples: int

    def __len__(self) -> int:
        """Return the number of batches that `epoch` (training split) or `batches` (test split) gives."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the shuffled, augmented batches of an epoch from batch `start` on; a short last batch is left out."""

    def batches(self) -> Iterator[Batch]:
        """Yield every sample once, in order, without augmentation."""


@dataclass
class Data:
    """A data set as a model sees it; a split that is absent is None. `task` has the data's sizes."""

    task: Task
    preprocessing: Preprocessing
    train: Loader | None
    test: Loader | None
    class_names: list[str]

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.preprocessing.input_size[0]

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.preprocessing.input_size[1]


def seed_of(*numbers: int) -> int:
    """Mix numbers (seed, epoch, index) into one seed of 64 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def shuffled(samples: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Return the sample indices of every batch of a training epoch."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed_of(seed, epoch)))
    whole = samples // batch_size * batch_size or samples
    return list(torch.split(order[:whole], batch_size))


class ArrayLoader:
    """Images that lie in memory as uint8 (N, H, W, C); a batch is resized, augmented and normalised as one tensor.

    `augment` None marks a test split. Loaders that differ in `view` alone give the same images, augmented otherwise.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        preprocessing: Preprocessing,
        batch_size: int,
        augment: str | None,
        seed: int,
    ) -> None:
        self.images, self.labels = images, labels
        self.preprocessing, self.batch_size, self.augment, self.seed = preprocessing, batch_size, augment, seed
        self.num_samples = len(images)
        self.view = 0
        self._mean = 255 * torch.tensor(preprocessing.mean).view(-1, 1, 1)
        self._std = 255 * torch.tensor(preprocessing.std).view(-1, 1, 1)
        self._grey = torch.tensor(_GREY).view(3, 1, 1)

    def on(self, device: torch.device) -> ArrayLoader:
        """Return a loader of the same batches whose images lie on `device`, and are prepared there, if they fit."""
        if self.images.device.type == device.type or not _fits(self.images, device):
            return self
        part = copy.copy(self)
        for name in ("images", "labels", "_mean", "_std", "_grey"):
            setattr(part, name, getattr(self, name).to(device))
        return part

    def __len__(self) -> int:
        """Return the number of batches."""
        if self.augment is None:
            return -(-self.num_samples // self.batch_size)
        return max(1, self.num_samples // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the shuffled, augmented batches of an epoch from batch `start` on."""
        order = shuffled(self.num_samples, self.batch_size, self.seed, epoch)
        for number in range(start, len(order)):
            numbers = (self.seed, epoch, number, self.view) if self.view else (self.seed, epoch, number)
            generator = torch.Generator().manual_seed(seed_of(*numbers))
            rows = moved(order[number], self.images.device)
            images = augment(self._resized(rows), self.augment or "none", generator)
            yield Batch(self._normalised(images), self.labels[rows], order[number])

    def batches(self) -> Iterator[Batch]:
        """Yield every sample once, in order, without augmentation."""
        for places in torch.split(torch.arange(self.num_samples), self.batch_size):
            rows = moved(places, self.images.device)
            yield Batch(self._normalised(self._resized(rows)), self.labels[rows], places)

    def _resized(self, rows: Tensor) -> Tensor:
        """Return images (N, C, H, W) in 0..255 of the model's size: bytes where they are stored like that."""
        channels, *size = self.preprocessing.input_size
        images = self.images[rows].permute(0, 3, 1, 2)
        if images.shape[1] == 3 and channels == 1:
            images = (images * self._grey).sum(1, keepdim=True)
        if list(images.shape[2:]) != size:
            mode = self.preprocessing.interpolation
            images = F.interpolate(images.float(), size, mode=mode, antialias=True).clamp_(0, 255)
        return images

    def _normalised(self, images: Tensor) -> Tensor:
        """Return float32 (N, C, H, W) with the model's channels."""
        return ((images - self._mean) / self._std).contiguous()


def placed(loader: Loader, device: str | torch.device) -> Loader:
    """Return a loader of the same batches that feeds `device` fast: what its method `on` gives, where it has one.

    Images in memory move to the device, once, where they take at most a quarter of what is free there; what is read
    one by one goes into memory that a GPU copies from without a wait.
    """
    on = getattr(loader, "on", None)
    found: Loader = loader if on is None else on(torch.device(device))
    return found


def _fits(images: Tensor, device: torch.device) -> bool:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 * _SMALL
    return 4 * images.nbytes <= free


def augment(images: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Shift and mirror the images (N, C, H, W) of a batch at random, each by itself; what moves in is black.

    The draws are made by `generator` on the CPU, so that they are the same on every device.
    """
    if how in ("shift", "crop_flip"):
        images = _shifted(images, max(1, images.shape[-1] // 8), generator)
    if how in ("flip", "crop_flip"):
        mirrored = moved(torch.rand(len(images), generator=generator) < 0.5, images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images


def _shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Move every image by up to `reach` pixels along both axes: a crop of the padded image."""
    count, _, height, width = images.shape
    padded = F.pad(images, (reach, reach, reach, reach))
    top, left = moved(torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator), images.device)
    each, down, along = (torch.arange(length, device=images.device) for length in (count, height, width))
    rows, columns = top + down, left + along
    picked = padded.permute(0, 2, 3, 1)[each.view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]
    return picked.permute(0, 3, 1, 2)
