"""Where the positions that stay lie in any tensor of the forward pass, for some kept units of every group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
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
    table: Indices


@dataclass
class Positions:
    """Maps narrowed tensors into dense ones, as `graph` (its groups possibly rematched) and `kept` say.

    Args:
        graph: its record tells which axis is which group.
        kept: group name -> the units that stay; groups that are not named stay whole.
    """

    graph: Graph
    kept: Mapping[str, Tensor]
    _found: dict[Dim, Indices | _Varying | None] = field(default_factory=dict)
    _shapes: dict[Dims, tuple[int, ...]] = field(default_factory=dict)
    _samples: dict[Dims, Sample | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = {group.name: group for group in self.graph.groups}
        self._units: dict[Axis, Indices] = {}
        self._tables: dict[Axis, tuple[Axis, Indices]] = {}
        for axis, name in self.graph.record.names.items():
            units = self.kept.get(name)
            if units is None or name not in groups or len(units) == axis.size:
                continue
            order, owner = groups[name].order, self.graph.record.owners.get(axis)
            if order is None or owner is None:
                self._units[axis] = np.sort(units.cpu().numpy())
            else:
                self._tables[axis] = owner, np.sort(order[:, units].cpu().numpy(), axis=1)

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
        return torch.from_numpy(found) if isinstance(found, np.ndarray) else None

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
        shape, whole = self.shape(dims), tuple(axes.dim_size(dim) for dim in dims)
        if 0 in shape:
            return None
        narrow, places = _drawn_from(shape)
        if shape == whole:
            return Sample(places, places)
        dense: list[Indices] = []
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
        return Sample(places, torch.from_numpy(np.ravel_multi_index(tuple(dense), whole)))

    def _coordinate(self, axis: Axis, dims: Dims, narrow: tuple[Indices, ...]) -> Indices | None:
        """Return the dense index along `axis` of each element, read from the dimension that `axis` is a factor of."""
        for dim, at in zip(dims, narrow, strict=True):
            if len(dim) == 1 and axis in dim[0]:
                found = self._of(dim)
                if isinstance(found, np.ndarray):
                    inner = axes.segment_size(dim[0][dim[0].index(axis) + 1 :])
                    along: Indices = found[at] // inner % axis.size
                    return along
        return None

    def _of(self, dim: Dim) -> Indices | _Varying | None:
        if dim not in self._found:
            self._found[dim] = self._made(dim)
        return self._found[dim]

    def _made(self, dim: Dim) -> Indices | _Varying | None:
        parts, offset = [], 0
        for segment in dim:
            part = self._segment(segment)
            if not isinstance(part, np.ndarray):
                return part if len(dim) == 1 else None
            parts.append(part + offset)
            offset += axes.segment_size(segment)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _segment(self, segment: Segment) -> Indices | _Varying | None:
        grid = np.arange(axes.segment_size(segment)).reshape([axis.size for axis in segment])
        for place, axis in enumerate(segment):
            if axis in self._units:
                grid = grid.take(self._units[axis], place)
        varying = [place for place, axis in enumerate(segment) if axis in self._tables]
        outside = [place for place in varying if self._tables[segment[place]][0] not in segment]
        for place in set(varying) - set(outside):
            owner, table = self._tables[segment[place]]
            row = segment.index(owner)
            rows = table[self._units[owner]] if owner in self._units else table
            shape = [1] * len(segment)
            shape[row], shape[place] = rows.shape
            rows = rows if row < place else rows.T
            grid = np.take_along_axis(grid, rows.reshape(shape), place)
        if not outside:
            return grid.reshape(-1)
        if len(outside) > 1:
            return None
        owner, table = self._tables[segment[outside[0]]]
        moved = np.moveaxis(grid, outside[0], 0)[table]  # (n, kept, ...)
        return _Varying(owner, np.moveaxis(moved, 1, 1 + outside[0]).reshape(len(table), -1))


@lru_cache(4096)
def _drawn_from(shape: tuple[int, ...]) -> tuple[tuple[Indices, ...], Tensor]:
    """Return SAMPLES elements of a tensor, as coordinates (one array for each dimension) and counted row by row."""
    if not shape:
        return (), torch.zeros(SAMPLES, dtype=torch.long)
    coordinates = _coordinates(shape)
    return coordinates, torch.from_numpy(np.ravel_multi_index(coordinates, shape))


def _coordinates(shape: tuple[int, ...]) -> tuple[Indices, ...]:
    """Return all elements of a small tensor, else some drawn at random.

    Those are spread evenly along every dimension (a Latin hypercube), so that all of up to SAMPLES channels are seen.
    """
    if prod(shape) <= SAMPLES:
        return np.unravel_index(np.arange(SAMPLES) % prod(shape), shape)
    return tuple((_spread(place) * size).astype(np.int64) for place, size in enumerate(shape))


@cache
def _spread(place: int) -> npt.NDArray[np.float64]:
    """Return one number from each of SAMPLES equal parts of [0, 1), in an order of its own for each dimension."""
    draw = np.random.default_rng(place)
    parts: npt.NDArray[np.float64] = (draw.permutation(SAMPLES) + draw.random(SAMPLES)) / SAMPLES
    return parts
