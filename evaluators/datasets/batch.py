"""A batch: what a model is called with, what is wanted of it, and which samples these are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compress.core.tensors import Inputs


@dataclass(frozen=True)
class Batch:
    """Samples for one call of a model.

    Attributes:
        inputs: see `compress.core.tensors.Inputs`; float32 (N, C, H, W) for images.
        targets: what the task's loss and metrics compare with; int64 (N,) for classes.
        index: places of the samples in their split, int64 (N,) on the CPU; None where they are not known, or where
            samples have been mixed.
    """

    inputs: Inputs
    targets: Any
    index: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        first = self.inputs
        while isinstance(first, tuple | dict):
            first = next(iter(first.values() if isinstance(first, dict) else first))
        return len(first)

    def to(self, device: str | torch.device, *, copy: bool = False) -> Batch:
        """Return the batch with inputs and targets on `device`; with `copy`, inputs that nobody else holds."""
        where = torch.device(device)
        move: Callable[[Tensor], Tensor] = (lambda each: each.to(where, copy=True)) if copy else _to(where)
        return replace(self, inputs=each_tensor(self.inputs, move), targets=each_tensor(self.targets, _to(where)))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `function` of every tensor among its inputs."""
        return replace(self, inputs=each_tensor(self.inputs, function))

    def part(self, start: int, stop: int) -> Batch:
        """Return the samples from number `start` up to `stop`."""
        index = None if self.index is None else self.index[start:stop]
        return Batch(_cut(self.inputs, start, stop), _cut(self.targets, start, stop), index)

    def split(self, samples: int) -> Iterator[Batch]:
        """Yield the batch in parts of `samples`, the last one smaller."""
        return (self.part(start, start + samples) for start in range(0, len(self), samples))

    def pin_memory(self) -> Batch:
        """Return the batch in memory that a GPU copies from without a wait; torch's DataLoader asks for it."""
        return replace(
            self,
            inputs=each_tensor(self.inputs, Tensor.pin_memory),
            targets=each_tensor(self.targets, Tensor.pin_memory),
        )


def each_tensor(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return `value` with `function` of every tensor in its tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: each_tensor(each, function) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([each_tensor(each, function) for each in value])
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in the tuples, lists and dictionaries of `value`."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(each)


def joined(batches: Sequence[Batch]) -> Batch:
    """Return the samples of all `batches` as one; index is left out."""
    return Batch(joined_values([each.inputs for each in batches]), joined_values([each.targets for each in batches]))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; a GPU copies it in turn, and this process goes on without waiting for that."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from other memory a copy waits for all work that is under way
    return tensor.to(device, non_blocking=True)


def _to(device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda tensor: moved(tensor, device)


def joined_values(values: Sequence[Any]) -> Any:
    """Return tensors, and lists of samples, one after the other, in whichever tuples and dictionaries they are."""
    first = values[0]
    if isinstance(first, dict):
        return {name: joined_values([each[name] for each in values]) for name in first}
    if isinstance(first, tuple):
        return tuple(joined_values(each) for each in zip(*values, strict=True))
    return torch.cat(list(values)) if isinstance(first, Tensor) else [sample for each in values for sample in each]


def _cut(value: Any, start: int, stop: int) -> Any:
    """Return a range of tensors and lists (of samples), in whichever tuples and dicts they are."""
    if isinstance(value, dict):
        return {name: _cut(each, start, stop) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_cut(each, start, stop) for each in value)
    return value[start:stop]
