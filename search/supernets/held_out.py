"""The held-out samples as a second stream of batches, for methods that choose architectures by them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from evaluators.datasets import Data, Loader
from evaluators.datasets.batch import Batch


class HeldOut:
    """Batches of the samples that weights do not learn from: shuffled anew each time round, not augmented.

    Batch number n is the same whenever it is asked for, so that a resumed training goes on with the same ones.
    """

    def __init__(self, data: Data) -> None:
        """The batches have the size of the training batches, or hold everything where there is less."""
        assert data.train is not None and data.test is not None
        self.loader: Loader = copy.copy(data.test)
        self.loader.batch_size = min(data.train.batch_size, data.test.num_samples)
        self.batches = max(1, self.loader.num_samples // self.loader.batch_size)
        self._next = -1
        self._stream: Iterator[Batch] = iter(())

    def batch(self, number: int) -> Batch:
        """Return batch `number` (from 0, without end), on the CPU; asking in order costs least."""
        rounds, place = divmod(number, self.batches)
        if number != self._next or place == 0:
            self._stream = self.loader.epoch(rounds, start=place)
        self._next = number + 1
        return next(self._stream)
