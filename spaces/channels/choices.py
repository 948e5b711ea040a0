"""The decisions of a model: which widths its groups of channels may take, and how many blocks its stages keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import nn

from compress.core.globs import named
from compress.graph.graph import Graph, Group
from compress.graph.lanes import Lane, make_lanes
from compress.graph.widths import WidthRules
from spaces.architecture import Choice, Condition, Decision, where

By = Literal["layer", "stage", "kind", "model"]
"""Which widths are one decision: those of tied layers, of a stage, of a kind (channels, heads, ...), or all."""

_SUFFIX = {"channels": "width", "mlp": "width", "heads": "heads", "head_dims": "head_dim"}


@dataclass(frozen=True)
class Stage:
    """A run of sibling blocks of one kind that can be left out from its end.

    `blocks` are those that can go, in order; `first` counts the block before them that changes the stream and stays;
    `shares` of all are offered, if there are any.
    """

    name: str
    blocks: tuple[str, ...]
    first: int
    shares: tuple[float, ...] = ()

    @property
    def decision(self) -> Decision:
        """How many blocks are kept; at least one, and of `shares` the nearest numbers, if there are any."""
        whole = self.first + len(self.blocks)
        some = sorted({max(1, int(share * whole + 0.5)) for share in self.shares})
        return Decision(self.name, tuple(some or range(1, whole + 1)))

    def dropped(self, depth: int) -> tuple[str, ...]:
        """Return the blocks that are gone when `depth` blocks are kept."""
        return self.blocks[depth - self.first :]


@dataclass(frozen=True)
class Width:
    """A width, or several that move together: `units` gives for each choice the units kept of every group.

    A choice is how wide the first of the groups is, or the fraction of each that stays.
    """

    name: str
    groups: tuple[str, ...]
    units: Mapping[int | float, tuple[int, ...]]
    when: Condition | None

    @property
    def decision(self) -> Decision:
        """How wide the groups are."""
        return Decision(self.name, tuple(self.units), self.when)


def find_stages(
    module: nn.Module, blocks: Sequence[str], exclude: Sequence[str], shares: Sequence[float] = ()
) -> tuple[Stage, ...]:
    """Return the stages of `module`, in its order, given the residual `blocks` that it can do without.

    A block in which something is excluded stays.
    `shares` of the blocks of each are offered; none: any number.
    """
    layers = {
        block: [f"{block}.{name}".rstrip(".") for name, _ in module.get_submodule(block).named_modules()]
        for block in blocks
    }
    free = [block for block in blocks if not any(named(layer, glob) for layer in layers[block] for glob in exclude)]
    runs = [run for parent in dict.fromkeys(map(_parent, free)) for run in _runs(module, parent, set(free))]
    stages = []
    for run, droppable in runs:
        parent = _parent(run[0])
        alone = bool(parent) and sum(_parent(other[0]) == parent for other, _ in runs) == 1
        name = f"{parent if alone else run[0]}.depth"
        stages.append(Stage(name, tuple(droppable), len(run) - len(droppable), tuple(shares)))
    return tuple(stages)


def _runs(module: nn.Module, parent: str, free: set[str]) -> list[tuple[list[str], list[str]]]:
    """Return (blocks, those that can go) of each run of one class; a block that cannot go begins a new run."""
    runs: list[tuple[list[str], list[str]]] = []
    before: type[nn.Module] | None = None
    for leaf, child in module.get_submodule(parent).named_children():
        name = f"{parent}.{leaf}".lstrip(".")
        if name not in free:
            runs.append(([name], []))
        elif runs and type(child) is before:
            runs[-1][0].append(name)
            runs[-1][1].append(name)
        else:
            runs.append(([name], [name]))
        before = type(child)
    return [(run, droppable) for run, droppable in runs if droppable and len(run) > 1]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def find_widths(
    graph: Graph, fractions: Sequence[float], rules: WidthRules, stages: Sequence[Stage], by: By = "layer"
) -> tuple[Width, ...]:
    """Return every width of `graph` that leaves a choice; tied groups are one, and what `by` says is decided at once.

    Each fraction takes the nearest width that `rules` allow. A width inside a block that can be left out is decided
    only where the block is kept.
    """
    if by != "layer":
        return _decided_at_once(graph, fractions, rules, stages, by)
    lanes = make_lanes(graph, {group.name: torch.zeros(group.size) for group in graph.groups}, "uniform", rules)
    widths = []
    for lane in lanes:
        members = [graph.groups[place] for place in lane.members]
        units = _units(lane, members[0], fractions)
        if [row[0] for row in units.values()] != [members[0].size]:
            names = tuple(group.name for group in members)
            widths.append(Width(_decision_name(members[0]), names, units, _when(members, stages)))
    return tuple(widths)


def _decided_at_once(
    graph: Graph, fractions: Sequence[float], rules: WidthRules, stages: Sequence[Stage], by: By
) -> tuple[Width, ...]:
    """Return one width for each stage, for each kind, or for all: its choices are fractions."""
    scores = {group.name: torch.zeros(group.size) for group in graph.groups}
    found: dict[str, list[Lane]] = {}
    for lane in make_lanes(graph, scores, "uniform", rules):
        if len(lane.widths) > 1:
            first = graph.groups[lane.members[0]]
            found.setdefault({"stage": first.stage, "kind": first.kind}.get(by, ""), []).append(lane)
    widths = []
    for place, lanes in found.items():
        members = [graph.groups[number] for lane in lanes for number in lane.members]
        rows = [
            (f, tuple(units for lane in lanes for units in _nearest(lane, f * graph.groups[lane.members[0]].size)))
            for f in sorted(set(fractions))
        ]
        units: dict[int | float, tuple[int, ...]] = {}
        for row, alike in groupby(rows, key=lambda pair: pair[1]):
            units[list(alike)[-1][0]] = row
        if list(units.values()) != [tuple(group.size for group in members)]:
            names = tuple(group.name for group in members)
            widths.append(Width(f"{place}.width".lstrip("."), names, units, _when(members, stages)))
    return tuple(widths)


def _nearest(lane: Lane, width: float) -> tuple[int, ...]:
    """Return the units of every member at the nearest width of the first that is allowed, the wider one in doubt."""
    row: tuple[int, ...] = tuple(lane.widths[::-1][abs(lane.widths[::-1, 0] - width).argmin()].tolist())
    return row


def _units(lane: Lane, group: Group, fractions: Sequence[float]) -> dict[int | float, tuple[int, ...]]:
    """Return width in channels -> units of every member, ascending."""
    rows = sorted({_nearest(lane, f * group.size) for f in fractions})
    wide = _first_out(group) if group.kind == "channels" else 1
    return {row[0] * wide: row for row in rows}


def _first_out(group: Group) -> int:
    """Return how many channels of the layer that names the group are one unit of it."""
    return int(next(part.positions[0].numel() for part in group.slices if part.role == "out"))


def _decision_name(group: Group) -> str:
    layer, _, kind = group.name.rpartition(":")
    plain = kind.rstrip("0123456789")
    return f"{layer}.{_SUFFIX[plain]}{kind.removeprefix(plain)}"


def _when(members: Sequence[Group], stages: Sequence[Stage]) -> Condition | None:
    """Return the condition that a block which holds one of the groups is kept; None where there is always one."""
    places = {_place(group, stages) for group in members}
    if None in places:
        return None
    found = [place for place in places if place is not None]
    if len({stage.name for stage, _ in found}) > 1:
        return None
    stage = found[0][0]
    least = min(depth for _, depth in found)
    return where(stage.name, *(depth for depth in stage.decision.choices if int(depth) >= least))


def _place(group: Group, stages: Sequence[Stage]) -> tuple[Stage, int] | None:
    """Return the stage and the least depth at which the block around all of `group` is kept."""
    for stage in stages:
        for number, block in enumerate(stage.blocks, stage.first + 1):
            if all(part.tensor.startswith(f"{block}.") for part in group.slices):
                return None if number == 1 else (stage, number)
    return None


def decisions(stages: Sequence[Stage], widths: Sequence[Width]) -> list[Decision]:
    """Return all decisions, each depth right before the first width that hangs on it."""
    waiting = {stage.name: stage.decision for stage in stages}
    result = []
    for width in widths:
        result += [waiting.pop(name) for name in (width.when.reads if width.when else ()) if name in waiting]
        result.append(width.decision)
    return [*result, *waiting.values()]


def units_kept(widths: Sequence[Width], arch: Mapping[str, Choice]) -> dict[str, int]:
    """Return the units that `arch` keeps of every group it decides on."""
    kept: dict[str, int] = {}
    for width in widths:
        if width.name in arch:
            choice = arch[width.name]
            assert isinstance(choice, int | float)
            kept |= dict(zip(width.groups, width.units[choice], strict=True))
    return kept


def blocks_dropped(stages: Sequence[Stage], arch: Mapping[str, Choice]) -> tuple[str, ...]:
    """Return the blocks that `arch` leaves out."""
    dropped: list[str] = []
    for stage in stages:
        depth = arch[stage.name]
        assert isinstance(depth, int)
        dropped += stage.dropped(depth)
    return tuple(dropped)
