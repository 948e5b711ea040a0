"""The dense model with some units silenced, or without whole blocks, for as long as it is looked at."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.graph.apply import PassThrough
from compress.graph.graph import Graph
from compress.graph.plan import Plan
from compress.graph.silenced_products import Products

Silenced = Literal["everything", "learned", "plain"]
SILENCED: tuple[Silenced, ...] = ("everything", "learned", "plain")
_PLAIN = ("weight", "bias", "running_")


def learned(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and running statistics."""
    statistics = {name: value for name, value in model.named_buffers() if "running_" in name.rpartition(".")[2]}
    return {**dict(model.named_parameters()), **statistics}


def is_constant(value: Tensor) -> bool:
    """Return whether all values of a tensor of floats are the same."""
    if not value.is_floating_point() or value.numel() < 2:
        return False
    flat = value.detach().reshape(-1)
    first = flat[0].item()
    return bool(first == flat[-1].item()) and bool((flat == first).all())


@contextlib.contextmanager
def _restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.data.copy_(value)


@contextlib.contextmanager
def perturbed(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let tensors that are all of one value vary: a mistake in which of equal values stay would not show."""
    generator = torch.Generator().manual_seed(0)
    with _restored(tensors):
        for tensor in tensors:
            noise = torch.rand(tensor.shape, generator=generator).to(device=tensor.device, dtype=tensor.dtype)
            first = tensor.flatten()[0].item()
            tensor.data.copy_(first * (1 + 0.2 * noise) if first else 0.2 * noise - 0.1)
        yield


@contextlib.contextmanager
def silenced_in(model: nn.Module, plan: Plan, graph: Graph, silenced: Silenced) -> Iterator[Products]:
    """Set to zero what the plan removes; put it back afterwards."""
    named = {**learned(model), **(dict(model.named_buffers()) if silenced == "everything" else {})}
    reads = {(part.tensor, part.dim) for group in graph.groups for part in group.slices if part.role == "in"}

    def goes(name: str, dim: int) -> bool:
        if (name, dim) in reads:
            return True
        return not _is_direction(name, named) and (silenced != "plain" or name.rpartition(".")[2].startswith(_PLAIN))

    stays, swapped, zeros = _Stays(), [], {}
    try:
        for name, dims in plan.kept.items():
            stay = {dim: indices for dim, indices in dims.items() if goes(name, dim)} if name in named else {}
            if stay:
                tensor, whole = named[name], named[name].data
                tensor.data = only = stays.only(whole, stay)
                swapped.append((tensor, whole))
                if len(stay) > 1:
                    left = {dim: stays.positions(indices, only.device) for dim, indices in stay.items()}
                    zeros[only.untyped_storage().data_ptr()] = only, left
        yield Products(zeros)
    finally:
        for tensor, whole in reversed(swapped):
            tensor.data = whole


class _Stays:
    """What stays along a dimension, as positions and as ones among zeros; many tensors share that of one width."""

    def __init__(self) -> None:
        self._positions: dict[tuple[Any, ...], Tensor] = {}
        self._marks: dict[tuple[Any, ...], Tensor] = {}

    def positions(self, indices: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the positions as a tensor."""
        key = id(indices), device
        if key not in self._positions:
            self._positions[key] = torch.tensor(indices, dtype=torch.long, device=device)
        return self._positions[key]

    def only(self, value: Tensor, dims: Mapping[int, tuple[int, ...]]) -> Tensor:
        """Return a copy of a tensor that is zero outside of what stays in each of `dims`."""
        if len(dims) == 1:
            ((dim, indices),) = dims.items()
            return torch.where(self._mark(value, dim, indices, torch.bool), value, 0)
        multiplied = value.is_floating_point() and math.isfinite(value.sum())  # which is quicker
        dtype = value.dtype if multiplied else torch.bool
        mask = reduce(torch.mul, (self._mark(value, dim, indices, dtype) for dim, indices in dims.items()))
        return value * mask if multiplied else torch.where(mask, value, 0)

    def _mark(self, value: Tensor, dim: int, indices: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = value.shape[dim]
        key = id(indices), size, dtype, value.device
        if key not in self._marks:
            marks = torch.zeros(size, dtype=dtype, device=value.device)
            self._marks[key] = marks.index_fill_(0, self.positions(indices, value.device), 1)
        marks = self._marks[key]
        return marks if value.dim() == 1 else marks.reshape([-1 if place == dim else 1 for place in range(value.dim())])


def _is_direction(name: str, named: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is the direction in a weight norm: its length is divided out, the gain silences it."""
    for own, gain in (("parametrizations.weight.original1", "original0"), ("weight_v", "weight_g")):
        if name.endswith(own):
            owner = name.removesuffix(own.rpartition(".")[2])
            return f"{owner}{gain}" in named
    return False


@contextlib.contextmanager
def passed_through(model: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Put the identity in the place of whole blocks."""
    owners = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in blocks]
    saved = [getattr(owner, leaf) for owner, leaf in owners]
    try:
        for owner, leaf in owners:
            setattr(owner, leaf, PassThrough())
        yield
    finally:
        for (owner, leaf), module in zip(owners, saved, strict=True):
            setattr(owner, leaf, module)
