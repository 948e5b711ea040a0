"""Where the positions that stay lie in any tensor of the forward pass, for some kept units of every group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from compress.graph import axes
from compress.graph.axes import Axis, Dim, Segment
from compress.graph.graph import Graph

Dims = tuple[Dim, ...]
SAMPLES = 256


@dataclass(frozen=True)
class Sample:
    """Some elements of a narrowed tensor: their indices there and in the dense tensor, one for each dimension."""

    narrow: tuple[Tensor, ...]
    dense: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Varying:
    """Positions that differ between the indices of another axis (heads that keep different units): (owner, n)."""

    owner: Axis
    table: Tensor


@dataclass
class Positions:
    """Maps narrowed tensors into dense ones, as `graph` (its groups possibly rematched) and `kept` say.

    Args:
        graph: its record tells which axis is which group.
        kept: group name -> the units that stay; groups that are not named stay whole.
    """

    graph: Graph
    kept: Mapping[str, Tensor]
    _found: dict[Dim, Tensor | _Varying | None] = field(default_factory=dict)
    _samples: dict[Dims, Sample | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = {group.name: group for group in self.graph.groups}
        self._units: dict[Axis, Tensor] = {}
        self._tables: dict[Axis, tuple[Axis, Tensor]] = {}
        for axis, name in self.graph.record.names.items():
            units = self.kept.get(name)
            if units is None or name not in groups or len(units) == axis.size:
                continue
            order, owner = groups[name].order, self.graph.record.owners.get(axis)
            if order is None or owner is None:
                self._units[axis] = units.sort().values
            else:
                self._tables[axis] = owner, order[:, units].sort(dim=1).values

    def narrowed(self, dims: Dims) -> bool:
        """Return whether any of these dimensions loses positions."""
        return any(self._narrows(axis) for dim in dims for segment in dim for axis in segment)

    def shape(self, dims: Dims) -> tuple[int, ...]:
        """Return the shape that a tensor of these dimensions has in the narrowed model."""
        return tuple(sum(prod(self._size(axis) for axis in segment) for segment in dim) for dim in dims)

    def index(self, dim: Dim) -> Tensor | None:
        """Return the positions of the dense dimension that stay, in order; None where that has no one answer."""
        found = self._of(dim)
        return found if isinstance(found, Tensor) else None

    def sample(self, dims: Dims) -> Sample | None:
        """Return some elements of a tensor; None where which dense element is which cannot be told."""
        if dims not in self._samples:
            self._samples[dims] = self._drawn(dims)
        return self._samples[dims]

    def _narrows(self, axis: Axis) -> bool:
        return axis in self._units or axis in self._tables

    def _size(self, axis: Axis) -> int:
        if axis in self._units:
            return len(self._units[axis])
        return self._tables[axis][1].shape[1] if axis in self._tables else axis.size

    def _drawn(self, dims: Dims) -> Sample | None:
        shape = self.shape(dims)
        total = prod(shape)
        if total <= SAMPLES:
            flat = torch.arange(total)
        else:
            flat = torch.randint(total, (SAMPLES,), generator=torch.Generator().manual_seed(0))
        narrow = torch.unravel_index(flat, shape) if shape else ()
        dense: list[Tensor] = []
        for dim, at in zip(dims, narrow, strict=True):
            found = self._of(dim)
            if isinstance(found, _Varying):
                heads = self._coordinate(found.owner, dims, narrow)
                if heads is None:
                    return None
                dense.append(found.table[heads, at])
            elif found is None:
                return None
            else:
                dense.append(found[at])
        return Sample(tuple(narrow), tuple(dense))

    def _coordinate(self, axis: Axis, dims: Dims, narrow: tuple[Tensor, ...]) -> Tensor | None:
        """Return the dense index along `axis` of each element, read from the dimension that `axis` is a factor of."""
        for dim, at in zip(dims, narrow, strict=True):
            if len(dim) == 1 and axis in dim[0]:
                found = self._of(dim)
                if isinstance(found, Tensor):
                    inner = axes.segment_size(dim[0][dim[0].index(axis) + 1 :])
                    return found[at] // inner % axis.size
        return None

    def _of(self, dim: Dim) -> Tensor | _Varying | None:
        if dim not in self._found:
            self._found[dim] = self._made(dim)
        return self._found[dim]

    def _made(self, dim: Dim) -> Tensor | _Varying | None:
        parts, offset = [], 0
        for segment in dim:
            part = self._segment(segment)
            if not isinstance(part, Tensor):
                return part if len(dim) == 1 else None
            parts.append(part + offset)
            offset += axes.segment_size(segment)
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)

    def _segment(self, segment: Segment) -> Tensor | _Varying | None:
        grid = torch.arange(axes.segment_size(segment)).reshape([axis.size for axis in segment])
        for place, axis in enumerate(segment):
            if axis in self._units:
                grid = grid.index_select(place, self._units[axis])
        varying = [place for place, axis in enumerate(segment) if axis in self._tables]
        outside = [place for place in varying if self._tables[segment[place]][0] not in segment]
        for place in set(varying) - set(outside):
            owner, table = self._tables[segment[place]]
            row = segment.index(owner)
            rows = table[self._units[owner]] if owner in self._units else table
            shape = [1] * len(segment)
            shape[row], shape[place] = rows.shape
            rows = rows if row < place else rows.T
            grid = torch.take_along_dim(grid, rows.reshape(shape), dim=place)
        if not outside:
            return grid.reshape(-1)
        if len(outside) > 1:
            return None
        owner, table = self._tables[segment[outside[0]]]
        moved = grid.movedim(outside[0], 0)[table.reshape(-1)].unflatten(0, table.shape)
        return _Varying(owner, moved.movedim(1, 1 + outside[0]).flatten(1))
