"""Batches: the same for the same seed and epoch, and an epoch may start in its middle."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets.batch import Batch, moved
from evaluators.datasets.decoding import reason
from evaluators.datasets.preprocessing import Preprocessing

if TYPE_CHECKING:
    from evaluators.tasks.task import Task

_GREY = (0.299, 0.587, 0.114)
_SMALL = 2**30  # bytes of images that any accelerator has room for


class Loader(Protocol):
    """A split of a data set: images float32 (N, C, H, W), normalised, and labels int64 (N,).

    The images of a training batch are a tensor of their own, which whoever takes the batch may change.
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


def _order(samples: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
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
        """Return a loader of the same batches whose images lie on `device`, and are prepared there."""
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
        order = _order(self.num_samples, self.batch_size, self.seed, epoch)
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
    """Return a loader of the same batches that feeds `device` fast; on the CPU it is `loader`.

    Images in memory move to the device, once, where they take at most a quarter of what is free there; files are read
    into memory that a GPU copies from without a wait.
    """
    where = torch.device(device)
    if isinstance(loader, ArrayLoader) and loader.images.device.type != where.type and _fits(loader.images, where):
        return loader.on(where)
    if isinstance(loader, FileLoader) and where.type == "cuda":
        part = copy.copy(loader)
        part.pinned = True
        return part
    return loader


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


@dataclass(frozen=True)
class ImageFiles:
    """Images that are read one by one: `read(index)` gives what `decode` does, `labels` one class number each.

    `name(index)` is what a sentence about an image calls it.
    """

    read: Callable[[int], Any]
    labels: Sequence[int]
    indices: Sequence[int]
    name: Callable[[int], str] = str


class _View(torch.utils.data.Dataset[Any]):
    """One pass over image files; a damaged file comes out as its sentence, so that workers can hand it on."""

    def __init__(self, files: ImageFiles, transform: Callable[[Any], Tensor], seeds: tuple[int, ...]) -> None:
        self.files, self.transform, self.seeds = files, transform, seeds

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | str:
        sample = self.files.indices[index]
        try:
            image = self.files.read(sample)
            with _seeded(seed_of(*self.seeds, index)):
                return self.transform(image), self.files.labels[sample], index
        except Exception as error:  # Pillow's formats raise nearly anything of a damaged file
            return f"data: cannot read image {self.files.name(sample)}: {reason(error)}"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which timm's transforms draw from, and put them back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _collate(samples: list[Any]) -> Batch | str:
    for sample in samples:
        if isinstance(sample, str):
            return sample
    images, labels, index = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(index))


class FileLoader:
    """Image files, each read and transformed by itself, in worker processes where asked.

    `training` None marks a test split.
    """

    def __init__(
        self,
        files: ImageFiles,
        *,
        evaluation: Callable[[Any], Tensor],
        training: Callable[[Any], Tensor] | None,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        self.files, self.training, self.evaluation = files, training, evaluation
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.num_samples = len(files.indices)
        self.pinned = False

    def __len__(self) -> int:
        """Return the number of batches."""
        if self.training is None:
            return -(-self.num_samples // self.batch_size)
        return max(1, self.num_samples // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the shuffled, augmented batches of an epoch from batch `start` on."""
        order = _order(self.num_samples, self.batch_size, self.seed, epoch)[start:]
        return self._run(_View(self.files, self.training or self.evaluation, (self.seed, epoch)), order)

    def batches(self) -> Iterator[Batch]:
        """Yield every sample once, in order, without augmentation."""
        order = list(torch.split(torch.arange(self.num_samples), self.batch_size))
        return self._run(_View(self.files, self.evaluation, (self.seed,)), order)

    def _run(self, view: _View, order: list[Tensor]) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(
            view,
            batch_sampler=[batch.tolist() for batch in order],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.pinned,
            generator=torch.Generator(),  # its own, or the loader draws from the global one
        )
        for batch in loader:
            if isinstance(batch, str):
                raise InputError(batch)
            yield batch
