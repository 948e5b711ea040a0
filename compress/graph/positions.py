"""Where the positions that stay lie in any tensor of the forward pass, for some kept units of every group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compress.graph import axes
from compress.graph.axes import Axis, Dim, Segment
from compress.graph.graph import Graph

Dims = tuple[Dim, ...]
Indices = npt.NDArray[np.int64]
SAMPLES = 256


@dataclass(frozen=True)
class Sample:
    """Elements of a narrowed tensor: their places there and in the dense tensor, each counted row by row (SAMPLES,)."""

    narrow: Tensor
    dense: Tensor


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
    _shapes: dict[Dims, tuple[int, ...]] = field(default_factory=dict)
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
        if dims not in self._shapes:
            sizes = (sum(prod(self._size(axis) for axis in segment) for segment in dim) for dim in dims)
            self._shapes[dims] = tuple(sizes)
        return self._shapes[dims]

    def index(self, dim: Dim) -> Tensor | None:
        """Return the positions of the dense dimension that stay, in order; None where that has no one answer."""
        found = self._of(dim)
        return found if isinstance(found, Tensor) else None

    def sample(self, dims: Dims) -> Sample | None:
        """Return some elements of a tensor; None where it has none or which dense element is which cannot be told."""
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
        if 0 in shape:
            return None
        narrow = _coordinates(shape)
        dense: list[Indices] = []
        for dim, at in zip(dims, narrow, strict=True):
            found = self._of(dim)
            if isinstance(found, _Varying):
                heads = self._coordinate(found.owner, dims, narrow)
                if heads is None:
                    return None
                dense.append(found.table.numpy()[heads, at])
            elif found is None:
                return None
            else:
                dense.append(found.numpy()[at])
        return Sample(_places(narrow, shape), _places(dense, tuple(axes.dim_size(dim) for dim in dims)))

    def _coordinate(self, axis: Axis, dims: Dims, narrow: list[Indices]) -> Indices | None:
        """Return the dense index along `axis` of each element, read from the dimension that `axis` is a factor of."""
        for dim, at in zip(dims, narrow, strict=True):
            if len(dim) == 1 and axis in dim[0]:
                found = self._of(dim)
                if isinstance(found, Tensor):
                    inner = axes.segment_size(dim[0][dim[0].index(axis) + 1 :])
                    along: Indices = found.numpy()[at] // inner % axis.size
                    return along
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


def _coordinates(shape: tuple[int, ...]) -> list[Indices]:
    """Return the coordinates of SAMPLES elements: all of a small tensor, else some drawn at random.

    Those are spread evenly along every dimension (a Latin hypercube), so that all of up to SAMPLES channels are seen.
    """
    if prod(shape) <= SAMPLES:
        return list(np.unravel_index(np.arange(SAMPLES) % prod(shape), shape)) if shape else []
    return [(_spread(place) * size).astype(np.int64) for place, size in enumerate(shape)]


@cache
def _spread(place: int) -> npt.NDArray[np.float64]:
    """Return one number from each of SAMPLES equal parts of [0, 1), in an order of its own for each dimension."""
    draw = np.random.default_rng(place)
    parts: npt.NDArray[np.float64] = (draw.permutation(SAMPLES) + draw.random(SAMPLES)) / SAMPLES
    return parts


def _places(coordinates: list[Indices], shape: tuple[int, ...]) -> Tensor:
    if not shape:
        return torch.zeros(SAMPLES, dtype=torch.long)
    return torch.from_numpy(np.ravel_multi_index(tuple(coordinates), shape))
