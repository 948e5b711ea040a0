"""Groups as lanes: what is needed to move all widths together along one threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compress.graph.graph import Graph, Group
from compress.graph.widths import WidthRules, allowed_widths

Allocation = Literal["global", "module", "uniform"]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Lane:
    """One group, or several that are tied: `widths` (levels, members) can be taken, ascending.

    `priority` (units of the first member) descends; all units compete by it.
    """

    members: tuple[int, ...]
    widths: Integers
    priority: Floats

    @cached_property
    def level_of(self) -> Integers:
        """The level nearest to each number of kept units 0 ... size, the wider one in doubt."""
        counts = np.arange(len(self.priority) + 1)
        distance = np.abs(counts[:, None] - self.widths[::-1, 0])
        level: Integers = len(self.widths) - 1 - distance.argmin(axis=1)
        return level

    @property
    def units_per_step(self) -> float:
        """How many units of all members go with one of the first."""
        return float(self.widths[-1].sum() / self.widths[-1, 0])

    @cached_property
    def between(self) -> Floats:
        """Mean priority of the units between each level and the next."""
        total = np.concatenate([[0.0], np.cumsum(self.priority)])[self.widths[:, 0]]
        mean: Floats = np.diff(total) / np.diff(self.widths[:, 0])
        return mean


def make_lanes(graph: Graph, scores: Mapping[str, Tensor], allocation: Allocation, rules: WidthRules) -> list[Lane]:
    """Return the lanes of a graph; tied groups share one, groups without scores keep their width."""
    place = {group.name: number for number, group in enumerate(graph.groups)}
    tied = [tuple(name for name in tie if name in scores) for tie in graph.ties]
    bound = {name for tie in tied for name in tie}
    sets = [tie for tie in tied if tie]
    sets += [(name,) for name in place if name in scores and name not in bound]
    sets.sort(key=lambda names: place[names[0]])
    priority = _priorities(graph, scores, allocation)
    lanes = []
    for names in sets:
        members = [graph.groups[place[name]] for name in names]
        pooled = _pooled([priority[name] for name in names])
        lanes.append(Lane(tuple(place[name] for name in names), _levels(members, rules), pooled))
    return lanes


def _priorities(graph: Graph, scores: Mapping[str, Tensor], allocation: Allocation) -> dict[str, Floats]:
    """Return the descending priorities of each group's units.

    `global`: the scores. `module`: the rank among all units of the same kind, as DIMAP has one threshold per module
    and one ratio for all. `uniform`: the rank within the group.
    """
    ranked = {group.name: np.sort(scores[group.name].numpy())[::-1] for group in graph.groups if group.name in scores}
    if allocation == "uniform":
        return {name: 1 - (np.arange(len(score)) + 0.5) / len(score) for name, score in ranked.items()}
    if allocation == "module":
        kinds = {group.name: group.kind for group in graph.groups}
        pools = {kind: np.sort(np.concatenate([s for n, s in ranked.items() if kinds[n] == kind]))
                 for kind in {kinds[name] for name in ranked}}  # fmt: skip
        return {
            name: np.searchsorted(pools[kinds[name]], score) / len(pools[kinds[name]]) for name, score in ranked.items()
        }
    return ranked


def _pooled(priorities: Sequence[Floats]) -> Floats:
    """Return the mean priority of tied units; members of other sizes are read at the same fraction."""
    size = len(priorities[0])
    read = [values[np.arange(size) * len(values) // size] for values in priorities]
    mean: Floats = np.mean(read, axis=0)
    return mean


def _levels(members: Sequence[Group], rules: WidthRules) -> Integers:
    """Return the widths that all members can take at the same fraction, ascending; the present ones are the last."""
    sets = [set(allowed_widths(group, rules)) for group in members]
    first = members[0].size
    rows = []
    for width in sorted(sets[0]):
        row = [width * group.size // first for group in members]
        exact = all(w * first == width * group.size for w, group in zip(row, members, strict=True))
        if exact and all(w in allowed for w, allowed in zip(row, sets, strict=True)):
            rows.append(row)
    return np.array(rows, dtype=np.int64)
