"""The part of a shared tensor that a narrower network uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compress.graph.graph import Graph, Group, Slice

Units = Mapping[str, int]
_REMEMBERED = 64  # index tensors of one dimension


@dataclass
class Dimension:
    """One dimension of a tensor, and the groups that index it.

    Where there is one group and its first units are the first positions, `step` says how many positions a unit has,
    and a view will do; else it is 0.
    """

    dim: int
    length: int
    parts: tuple[tuple[Group, Slice], ...]
    step: int
    _found: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def narrows(self, units: Units) -> bool:
        """Return whether any position goes."""
        return any(units[group.name] < group.size for group, _ in self.parts)

    def kept(self, units: Units) -> int:
        """Return how many positions stay of a dimension with a step."""
        return units[self.parts[0][0].name] * self.step

    def index(self, units: Units, device: torch.device) -> Tensor:
        """Return the positions that stay, ascending."""
        key = (device, *(units[group.name] for group, _ in self.parts))
        if key not in self._found:
            stays = torch.ones(self.length, dtype=torch.bool)
            for group, part in self.parts:
                stays[part.positions[units[group.name] :].reshape(-1)] = False
            if len(self._found) == _REMEMBERED:
                self._found.clear()
            self._found[key] = stays.nonzero().flatten().to(device)
        return self._found[key]


@dataclass(frozen=True)
class Part:
    """What some units of every group use of one tensor: the first of the `views`, and of the `picks` what is listed."""

    units: Units
    views: tuple[Dimension, ...]
    picks: tuple[Dimension, ...]
    shape: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part of `tensor`; gradients flow back to it.

        Prefixes are one strided view: that costs autograd one node and one buffer, not one for each dimension.
        """
        if self.views:
            tensor = tensor.as_strided(self.shape, tensor.stride(), tensor.storage_offset())
        for dimension in self.picks:
            tensor = tensor.index_select(dimension.dim, dimension.index(self.units, tensor.device))
        return tensor

    @torch.no_grad()
    def write_back(self, tensor: Tensor, part: Tensor) -> None:
        """Enter what became of a copied part of a vector in the whole."""
        (dimension,) = self.picks
        tensor.index_copy_(dimension.dim, dimension.index(self.units, tensor.device), part)


@dataclass(frozen=True)
class Cut:
    """All dimensions of one tensor that can be narrowed."""

    whole: tuple[int, ...]
    dimensions: tuple[Dimension, ...]

    def part(self, units: Units) -> Part | None:
        """Return the part that these units use; None where that is the whole."""
        narrow = [dimension for dimension in self.dimensions if dimension.narrows(units)]
        if not narrow:
            return None
        views = tuple(dimension for dimension in narrow if dimension.step)
        kept = {dimension.dim: dimension.kept(units) for dimension in views}
        shape = tuple(kept.get(dim, length) for dim, length in enumerate(self.whole))
        return Part(units, views, tuple(dimension for dimension in narrow if not dimension.step), shape)


def make_cuts(graph: Graph, decided: Collection[str], network: nn.Module) -> dict[str, Cut]:
    """Return, for each tensor of `network` that a decided group indexes, how it is cut; by all its names."""
    found: dict[str, dict[int, list[tuple[Group, Slice]]]] = {}
    for group in graph.groups:
        if group.name in decided:
            for part in group.slices:
                found.setdefault(part.tensor, {}).setdefault(part.dim, []).append((group, part))
    named = [*network.named_parameters(), *network.named_buffers()]
    every = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    first = {id(tensor): name for name, tensor in reversed(named)}
    return {
        name: _cut(tuple(tensor.shape), found[first[id(tensor)]])
        for name, tensor in every
        if first[id(tensor)] in found
    }


def _cut(whole: tuple[int, ...], found: Mapping[int, list[tuple[Group, Slice]]]) -> Cut:
    return Cut(whole, tuple(_dimension(dim, whole[dim], parts) for dim, parts in sorted(found.items())))


def _dimension(dim: int, length: int, parts: list[tuple[Group, Slice]]) -> Dimension:
    group, part = parts[0]
    prefix = len(parts) == 1 and torch.equal(part.positions.reshape(-1), torch.arange(length))
    return Dimension(dim, length, tuple(parts), length // group.size if prefix else 0)
