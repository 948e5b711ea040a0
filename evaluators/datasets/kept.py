"""Batches that are prepared once and used again and again, as where many networks are judged on the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch import Tensor

from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import Loader, placed

KEPT_BYTES = 2**28
"""Of prepared batches that are kept for the next network."""


class _Kept:
    """A loader whose batches are prepared once; they are the same every time."""

    def __init__(self, loader: Loader, batches: list[Batch]) -> None:
        self.kept = batches
        self.batch_size, self.num_samples = loader.batch_size, loader.num_samples

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.kept)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches."""
        return iter(self.kept[start:])

    def batches(self) -> Iterator[Batch]:
        """Yield the batches."""
        return iter(self.kept)


def kept(loader: Loader, device: str, limit: int | None = None) -> Loader:
    """Return `loader` with its batches prepared on `device`, if they fit; `loader` itself, placed there, if not.

    Args:
        loader: a test split, or (with `limit`) a training split.
        device: such as "cpu" or "cuda:0".
        limit: so many of the batches of a training split's first epoch; None for the samples in order.
    """
    loader = placed(loader, device)
    stream = loader.batches() if limit is None else islice(loader.epoch(0), limit)
    found: list[Batch] = []
    for batch in stream:
        found.append(batch.to(device))
        if len(found) * _bytes(found[0]) > KEPT_BYTES:
            return loader
    return _Kept(loader, found)


def _bytes(batch: Batch) -> int:
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    batch.mapped(count)
    return total
