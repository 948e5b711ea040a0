"""What an architecture is worth by the weights that it inherits."""

from __future__ import annotations

from abc import ABC, abstractmethod

from compress.core.batch_norm import recalibrate
from compress.core.environment import on_device
from compress.core.errors import Diverged
from compress.core.progress import hushed
from evaluators.candidates.evaluator import Metrics
from evaluators.candidates.networks import accuracy, diverged
from evaluators.datasets import Data
from spaces.architecture import Architecture
from spaces.supernet import Supernet


class Rater(ABC):
    """Rates architectures of one trained supernet; the same architecture gets the same metrics."""

    @abstractmethod
    def metrics(self, data: Data) -> tuple[str, ...]:
        """Return the names of what `free` and `rate` give together."""

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

    Where several supernets hold an architecture's weights, each metric is their mean.
    """

    def __init__(self, supernet: Supernet, device: str, batches: int) -> None:
        """`batches` of training data estimate an architecture's batch norms; 0 leaves what training has left."""
        self.supernet, self.device, self.batches = supernet, device, batches
        supernet.eval()

    def metrics(self, data: Data) -> tuple[str, ...]:
        """Return the task's."""
        return tuple(metric.name for metric in data.task.metrics)

    def rate(self, arch: Architecture, data: Data) -> Metrics:
        """Return the mean over the supernets that hold `arch`; outputs that are not finite count as the worst."""
        found = [self._rate(member, arch, data) for member in self.supernet.members(arch)]
        return {name: sum(each[name] for each in found) / len(found) for name in found[0]}

    def _rate(self, supernet: Supernet, arch: Architecture, data: Data) -> Metrics:
        assert data.train is not None
        supernet.activate(arch)
        try:
            with hushed(), on_device(supernet, self.device):
                recalibrate(supernet, data.train.epoch(0), self.batches, self.device, data.task.forward)
                return accuracy(supernet, data, self.device)
        except Diverged as error:
            return diverged(data, error)
