"""Samples that are read one by one, with targets of any kind; image and target are transformed together."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from compress.core.environment import usable_cores
from compress.core.errors import InputError
from evaluators.datasets.batch import Batch
from evaluators.datasets.decoding import reason
from evaluators.datasets.loaders import seed_of, shuffled

Joint = Callable[[Any, Any], tuple[Any, Any]]
"""Makes of what was read of a sample, image and target, what a model gets and what is wanted of it."""


@runtime_checkable
class Sized(Protocol):
    """A `Joint` that can be had for other sizes of images."""

    def resized(self, size: int) -> Any:
        """Return the same transform to `size` pixels a side."""

    def __call__(self, image: Any, target: Any) -> tuple[Any, Any]:
        """Return what a model gets and what is wanted of it."""


@dataclass(frozen=True)
class Samples:
    """What there is to read.

    Attributes:
        read: gives image and target of a number; the target is a class number, a mask (H, W), a dictionary with boxes,
            or an array of numbers. Raises anything of a damaged file.
        indices: the numbers of the samples that belong to the split, in their order.
        labels: a class of every number, by which parts of the split are made alike; None where samples have none.
        name: what a sentence about the sample of a number calls it.
    """

    read: Callable[[int], tuple[Any, Any]]
    indices: Sequence[int]
    labels: Sequence[int] | None = None
    name: Callable[[int], str] = str


@dataclass(frozen=True)
class Labelled:
    """Reads images by `image`, and has one class number for each."""

    image: Callable[[int], Any]
    labels: Sequence[int]

    def __call__(self, index: int) -> tuple[Any, int]:
        """Return an image and its class."""
        return self.image(index), self.labels[index]


def classified(image: Callable[[int], Any], labels: Sequence[int], name: Callable[[int], str] = str) -> Samples:
    """Return samples with one class number each."""
    return Samples(Labelled(image, labels), range(len(labels)), labels, name)


@dataclass(frozen=True)
class ImageOnly:
    """A transform of images that leaves targets as they are."""

    transform: Callable[[Any], Tensor]

    def __call__(self, image: Any, target: Any) -> tuple[Tensor, Any]:
        """Return the transformed image, and the target."""
        return self.transform(image), target


class SampleLoader:
    """Samples, each read and transformed by itself, in worker processes where asked.

    `training` None marks a test split. Batches are what the kind of target asks for: see `collate`.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        evaluation: Joint,
        training: Joint | None,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        self.samples, self.training, self.evaluation = samples, training, evaluation
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.num_samples = len(samples.indices)
        self.pinned = False
        self.places: Callable[[int], slice] | None = None

    def on(self, device: torch.device) -> SampleLoader:
        """Return a loader of the same batches in memory that `device` copies from without a wait."""
        if device.type != "cuda":
            return self
        part = copy.copy(self)
        part.pinned = True
        return part

    def narrowed(self, places: Callable[[int], slice]) -> SampleLoader:
        """Return a loader of parts of the same training batches: of one of n samples, those at `places(n)`."""
        part = copy.copy(self)
        part.places = places
        return part

    def __len__(self) -> int:
        """Return the number of batches."""
        if self.training is None:
            return -(-self.num_samples // self.batch_size)
        return max(1, self.num_samples // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the shuffled, augmented batches of an epoch from batch `start` on."""
        order = shuffled(self.num_samples, self.batch_size, self.seed, epoch)[start:]
        if self.places is not None:
            order = [batch[self.places(len(batch))] for batch in order]
        return self._run(_View(self.samples, self.training or self.evaluation, (self.seed, epoch)), order)

    def batches(self) -> Iterator[Batch]:
        """Yield every sample once, in order, without augmentation."""
        order = list(torch.split(torch.arange(self.num_samples), self.batch_size))
        return self._run(_View(self.samples, self.evaluation, (self.seed,)), order)

    def _run(self, view: _View, order: list[Tensor]) -> Iterator[Batch]:
        loader = torch.utils.data.DataLoader(
            view,
            batch_sampler=[batch.tolist() for batch in order],
            num_workers=min(self.workers, len(order), usable_cores()) if len(order) > 1 else 0,
            collate_fn=_collated,
            pin_memory=self.pinned,
            generator=torch.Generator(),  # its own, or the loader draws from the global one
        )
        for batch in loader:
            if isinstance(batch, str):
                raise InputError(batch)
            yield batch


class _View(torch.utils.data.Dataset[Any]):
    """One pass over samples; a damaged one comes out as its sentence, so that workers can hand it on."""

    def __init__(self, samples: Samples, transform: Joint, seeds: tuple[int, ...]) -> None:
        self.samples, self.transform, self.seeds = samples, transform, seeds

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any, int] | str]:
        """Return the samples of a batch."""
        with _kept_generators():  # once a batch: NumPy alone takes 0.3 ms to put its state back
            return [self[index] for index in indices]

    def __getitem__(self, index: int) -> tuple[Any, Any, int] | str:
        number = self.samples.indices[index]
        _seed(seed_of(*self.seeds, index))
        try:
            image, target = self.samples.read(number)
            return *self.transform(image, target), index
        except Exception as error:  # Pillow's formats raise nearly anything of a damaged file
            return f"data: cannot read image {self.samples.name(number)}: {reason(error)}"


@contextmanager
def _kept_generators() -> Iterator[None]:
    """Put the global generators, which the libraries' transforms draw from, back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def _collated(samples: list[Any]) -> Batch | str:
    for sample in samples:
        if isinstance(sample, str):
            return sample
    inputs, targets, index = zip(*samples, strict=True)
    return collate(inputs, targets, torch.tensor(index))


def collate(inputs: Sequence[Any], targets: Sequence[Any], index: Tensor | None = None) -> Batch:
    """Return samples as one batch.

    Targets that are dictionaries (of boxes, as many as there are) stay a list, and so do their images (C, H, W), as
    detectors take both. Everything else is stacked: images to (N, C, H, W), masks to (N, H, W), class numbers to
    (N,), and each of several inputs by its place or name.
    """
    if isinstance(targets[0], Mapping):
        return Batch(list(inputs), list(targets), index)
    return Batch(_stacked(inputs), _stacked(targets), index)


def _stacked(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {name: _stacked([each[name] for each in values]) for name in first}
    if isinstance(first, tuple):
        return tuple(_stacked(each) for each in zip(*values, strict=True))
    return torch.stack(list(values)) if isinstance(first, Tensor) else torch.tensor(values)
