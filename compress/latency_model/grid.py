"""Which widths of a group are worth considering on a target, and which narrowed networks to measure for them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from compress.graph.graph import Graph, Group, inside, row_of
from compress.graph.widths import WidthRules, step, unit_width

MOST_WIDTHS = 8
BELOW_STEP = (2, 4)
"""A width of less than one multiple may be cheaper than the multiple: halves and quarters of it are tried."""
DROP_SHARE = 0.3


@dataclass(frozen=True)
class Network:
    """A narrowed copy of a model: widths by group (others are whole) and the residual blocks that are gone."""

    widths: Mapping[str, int] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def candidate_widths(graph: Graph, multiple: int) -> dict[str, tuple[int, ...]]:
    """Return for each group the widths to measure, ascending, the present one last.

    Multiples of the target's, at most `MOST_WIDTHS`, and where one multiple is an eighth of the width or more, parts
    of it. Groups that are tied take the same fractions.
    """
    found = {group.name: _widths(group, multiple) for group in graph.groups}
    sizes = {group.name: group.size for group in graph.groups}
    for tie in graph.ties:
        first = min((name for name in tie if name in sizes), key=sizes.__getitem__, default=None)
        if first is None:
            continue
        kept = [
            width
            for width in found[first]
            if all(width * sizes[name] % sizes[first] == 0 for name in tie if name in sizes)
        ]
        for name in tie:
            if name in sizes:
                found[name] = tuple(width * sizes[name] // sizes[first] for width in kept)
    return found


def _widths(group: Group, multiple: int) -> tuple[int, ...]:
    channels = 1 if group.kind in ("heads", "head_dims") else unit_width(group)
    by = step(group, WidthRules(multiple)) if group.kind in ("heads", "head_dims") else max(1, multiple // channels)
    count = group.size / by
    parts = {max(1, round(group.size * part / MOST_WIDTHS / by)) * by for part in range(1, MOST_WIDTHS)}
    if count <= MOST_WIDTHS and group.kind not in ("heads",):
        parts |= {by // part for part in BELOW_STEP}
    return (*sorted(width for width in parts if 0 < width < group.size), group.size)


def networks(graph: Graph, widths: Mapping[str, Sequence[int]], count: int, seed: int) -> list[Network]:
    """Return `count` networks to measure, or as many as every width needs to occur; the whole one comes first.

    Every width of every group occurs as often as every other, in shuffled order. Every other network lacks blocks, but
    none of whose widths there is no other measurement. Tied groups move together.
    """
    generator = random.Random(seed)
    count = max(count, 1 + max(map(len, widths.values()), default=0))
    leaders = {name: tie[0] for tie in graph.ties for name in tie}
    draws: dict[str, list[int]] = {}
    for group in graph.groups:
        if leaders.get(group.name, group.name) == group.name:
            draws[group.name] = _levels(len(widths[group.name]), count - 1, generator)
    found = [Network()]
    for number in range(count - 1):
        chosen = {
            group.name: widths[group.name][draws[leaders.get(group.name, group.name)][number]] for group in graph.groups
        }
        found.append(Network(chosen, _dropped(graph.blocks, generator) if number % 2 else ()))
    return _covering(found, graph)


def _covering(found: Sequence[Network], graph: Graph) -> list[Network]:
    """Return the networks with blocks put back where otherwise a width of theirs would never be measured."""
    own = {group.name: [block for block in graph.blocks if inside(group.name, [block])] for group in graph.groups}
    seen: set[tuple[str, int]] = set()
    for network in found:
        seen |= {(g, w) for g, w in network.widths.items() if not inside(g, network.dropped)}
    covering = []
    for network in found:
        needed = {block for at in network.widths.items() if at not in seen for block in own[at[0]]}
        seen |= set(network.widths.items()) if needed else set()
        covering.append(replace(network, dropped=tuple(b for b in network.dropped if b not in needed)))
    return covering


def _levels(count: int, length: int, generator: random.Random) -> list[int]:
    levels: list[int] = []
    for _ in range(math.ceil(length / count)):
        levels += generator.sample(range(count), count)
    return levels[:length]


def _dropped(blocks: Sequence[str], generator: random.Random) -> tuple[str, ...]:
    """Return some of the blocks; every row of them keeps one."""
    gone = [block for block in blocks if generator.random() < DROP_SHARE]
    left = {block: row_of(block) for block in blocks if block not in gone}
    return tuple(block for block in gone if row_of(block) in left.values())
