"""The dense model with some units silenced, or without whole blocks, for as long as it is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from compress.graph.apply import PassThrough
from compress.graph.graph import Graph
from compress.graph.plan import Plan

Silenced = Literal["everything", "learned", "plain"]
SILENCED: tuple[Silenced, ...] = ("everything", "learned", "plain")
_PLAIN = ("weight", "bias", "running_")


def learned(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters and running statistics."""
    statistics = [(name, value) for name, value in model.named_buffers() if "running_" in name.rpartition(".")[2]]
    return [*model.named_parameters(), *statistics]


def is_constant(value: Tensor) -> bool:
    """Return whether all values of a tensor of floats are the same."""
    if not value.is_floating_point() or value.numel() < 2:
        return False
    first = value[(0,) * value.dim()]
    return bool(first == value[(-1,) * value.dim()]) and bool((value == first).all())


@contextlib.contextmanager
def _restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.data.copy_(value)


@contextlib.contextmanager
def perturbed(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let tensors that are all of one value vary: a mistake in which of equal values stay would not show."""
    named = dict(learned(model))
    tensors = [named[name] for name in names]
    generator = torch.Generator().manual_seed(0)
    with _restored(tensors):
        for tensor in tensors:
            noise = torch.rand(tensor.shape, generator=generator).to(device=tensor.device, dtype=tensor.dtype)
            first = tensor.flatten()[0].item()
            tensor.data.copy_(first * (1 + 0.2 * noise) if first else 0.2 * noise - 0.1)
        yield


@contextlib.contextmanager
def silenced_in(model: nn.Module, plan: Plan, graph: Graph, silenced: Silenced) -> Iterator[None]:
    """Set to zero what the plan removes; put it back afterwards."""
    named = {**dict(learned(model)), **(dict(model.named_buffers()) if silenced == "everything" else {})}
    reads = {(part.tensor, part.dim) for group in graph.groups for part in group.slices if part.role == "in"}

    def goes(name: str, dim: int) -> bool:
        if (name, dim) in reads:
            return True
        return not _is_direction(name, named) and (silenced != "plain" or name.rpartition(".")[2].startswith(_PLAIN))

    removed = [
        (named[name], dim, indices)
        for name, dims in plan.kept.items()
        if name in named
        for dim, indices in dims.items()
        if goes(name, dim)
    ]
    saved = []
    try:
        for tensor, dim, indices in removed:
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone.index_fill_(0, torch.tensor(indices, dtype=torch.long), False)
            places = gone.nonzero().flatten().to(tensor.device)
            saved.append((tensor.data, dim, places, tensor.data.index_select(dim, places)))
            tensor.data.index_fill_(dim, places, 0)
        yield
    finally:
        for data, dim, places, values in reversed(saved):
            data.index_copy_(dim, places, values)


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
