"""What an architecture is worth by the weights that it inherits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from compress.core.batch_norm import norm_layers, recalibrate
from compress.core.errors import Diverged
from compress.core.progress import hushed
from evaluators.candidates.evaluator import Metrics
from evaluators.candidates.networks import accuracy, diverged
from evaluators.datasets import Data, Loader
from evaluators.datasets.kept import kept
from spaces.architecture import Architecture
from spaces.supernet import Supernet


class Rater(ABC):
    """Rates architectures of one trained supernet; the same architecture gets the same metrics."""

    @abstractmethod
    def metrics(self, data: Data) -> tuple[str, ...]:
        """Return the names of what `free` and `rate` give together."""

    def direction(self, metric: str, data: Data) -> Literal["maximize", "minimize"]:
        """Return which way a metric is better: the task's are as it says, others larger unless a subclass knows."""
        ways = {each.name: each.direction for each in data.task.metrics}
        return ways.get(metric, "maximize")

    def free(self, arch: Architecture) -> Metrics:
        """Return what needs no forward pass."""
        return {}

    @abstractmethod
    def rate(self, arch: Architecture, data: Data) -> Metrics:
        """Return the metrics of `arch`, which is canonical, on `data.test`; `data` have the size it works on."""

    def holder(self, arch: Architecture, data: Data, supernet: Supernet) -> Supernet:
        """Return the one of the supernets in `supernet` whose weights the stand-alone network of `arch` inherits."""
        return supernet


class AccuracyRater(Rater):
    """The task's metrics on the held-out samples, with batch norms estimated anew for each architecture.

    Where several supernets hold an architecture's weights, each metric is their mean. The supernet stays on the device,
    and batches stay prepared there from one architecture to the next, as far as they fit.
    """

    def __init__(self, supernet: Supernet, device: str, batches: int) -> None:
        """`batches` of training data estimate an architecture's batch norms; 0 leaves what training has left."""
        self.supernet, self.device, self.batches = supernet.to(device).eval(), device, batches
        self._prepared: dict[int, _Prepared] = {}

    def metrics(self, data: Data) -> tuple[str, ...]:
        """Return the task's."""
        return tuple(metric.name for metric in data.task.metrics)

    def rate(self, arch: Architecture, data: Data) -> Metrics:
        """Return the mean over the supernets that hold `arch`; outputs that are not finite count as the worst."""
        found = self.by_member(self.supernet.members(arch), arch, data)
        return {name: sum(each[name] for each in found) / len(found) for name in found[0]}

    def by_member(self, members: Sequence[Supernet], arch: Architecture, data: Data) -> list[Metrics]:
        """Return the metrics of `arch` in each of these supernets."""
        ready = self._prepared.get(data.image_size)
        if ready is None or ready.data is not data:
            ready = self._prepared[data.image_size] = _Prepared.of(data, self.device, self.batches)
        return [self._rate(member, arch, ready) for member in members]

    def _rate(self, supernet: Supernet, arch: Architecture, ready: _Prepared) -> Metrics:
        supernet.activate(arch)
        try:
            with hushed():
                if self.batches and norm_layers(supernet):
                    batches = ready.calibration.epoch(0)
                    recalibrate(supernet, batches, self.batches, self.device, ready.data.task.forward)
                return accuracy(supernet, replace(ready.data, test=ready.test), self.device)
        except Diverged as error:
            return diverged(ready.data, error)


@dataclass
class _Prepared:
    """The batches that architectures of one image size are calibrated and judged on."""

    data: Data
    calibration: Loader
    test: Loader

    @classmethod
    def of(cls, data: Data, device: str, batches: int) -> _Prepared:
        assert data.train is not None and data.test is not None
        return cls(data, kept(data.train, device, batches), kept(data.test, device))
