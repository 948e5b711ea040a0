"""The device and precision that a training runs on: what moves modules and batches there and runs their passes."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.core.errors import InputError
from compress.training.replicas import replicas
from evaluators.datasets.batch import Batch

M = TypeVar("M", bound=nn.Module)

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


class Engine:
    """One device of this process at one precision, by Lightning Fabric.

    Attributes:
        device: where everything is computed.
        layout: the memory format of images and weights.
    """

    def __init__(self, device: str | torch.device, precision: str = "32", channels_last: bool = False) -> None:
        """Raises InputError where the device cannot compute at `precision` ("32", "bf16" or "16")."""
        self.fabric = _fabric(device, precision)
        self.device: torch.device = self.fabric.device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def placed(self, module: M) -> M:
        """Move `module` here, in place, and return it."""
        return module.to(self.device).to(memory_format=self.layout)

    def moved(self, batch: Batch) -> Batch:
        """Return the batch on this device."""
        return batch.to(self.device).mapped(self._laid_out)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=self.layout if tensor.ndim == 4 else torch.contiguous_format)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute what is in the block at this precision; the model that a step is given does so by itself."""
        context: AbstractContextManager[Any] = self.fabric.autocast()
        return context

    def backward(self, loss: Tensor, inputs: Sequence[Tensor] | None = None) -> None:
        """Add the gradients of `loss`, a scalar, to those that are there: of `inputs` alone, if they are given."""
        self.fabric.backward(loss, inputs=inputs)

    def average(self, parameters: Iterable[nn.Parameter], *others: Tensor) -> None:
        """Average gradients, and `others` with them, over the devices that train the model together."""
        replicas().average_gradients(parameters, *others)

    def apply(self, optimizer: Optimizer) -> None:
        """Let `optimizer` make its step, with gradients scaled back where the precision scales them.

        Where several devices train the model, the gradients are averaged first.
        """
        self.average(parameter for group in optimizer.param_groups for parameter in group["params"])
        self.fabric.strategy.optimizer_step(optimizer)


def _fabric(device: str | torch.device, precision: str) -> Any:
    bare = _bare()
    from lightning_fabric.plugins import MixedPrecision, Precision
    from lightning_fabric.plugins.environments import LightningEnvironment

    where = torch.device(device)
    if precision == "16" and where.type == "cpu":
        raise InputError('precision: "16" needs a GPU, the device is cpu; allowed here: "32", "bf16"')
    name = PRECISIONS[precision]
    plugin = Precision() if name == "32-true" else MixedPrecision(name, device=where.type)
    devices = 1 if where.type == "cpu" else [where.index or 0]
    # The environment is named so that a cluster's variables do not make Fabric look for other processes.
    return bare(accelerator=where.type, devices=devices, plugins=[plugin, LightningEnvironment()])


@functools.cache
def _bare() -> Any:
    """Return Fabric without callbacks of other packages: it would read what all that are installed declare."""
    with _version_alone("torchmetrics"):
        from lightning_fabric import Fabric

    class Bare(Fabric):
        @staticmethod
        def _configure_callbacks(callbacks: Any) -> list[Any]:
            return []

    return Bare


@contextmanager
def _version_alone(package: str) -> Iterator[None]:
    """Let the block import what imports `package` for its version, and does nothing else with it.

    Lightning Fabric does so with torchmetrics, whose import takes five seconds: it imports transformers and SciPy.
    """
    if package in sys.modules or importlib.util.find_spec(package) is None:
        yield
        return
    stand_in = ModuleType(package)
    stand_in.__version__ = metadata.version(package)  # type: ignore[attr-defined]
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        del sys.modules[package]
