"""What is decided in an allocation: the widths of groups that move together, and blocks that go or stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from compress.graph.graph import Graph, inside, row_of


@dataclass(frozen=True)
class Decision:
    """Groups that keep the same fraction of their units; `options` are their widths, ascending, the full ones last."""

    groups: tuple[str, ...]
    options: tuple[Mapping[str, int], ...]

    @property
    def name(self) -> str:
        """The first of the groups."""
        return self.groups[0]


def decisions_of(graph: Graph, choices: Callable[[str], Sequence[int]]) -> tuple[Decision, ...]:
    """Return the decisions on all groups of `graph` that have a choice.

    Args:
        graph: the groups; its ties move together, over the fractions that are whole units of all of them.
        choices: group name -> widths to consider.
    """
    tied = {name for tie in graph.ties for name in tie}
    lanes = [*graph.ties, *((group.name,) for group in graph.groups if group.name not in tied)]
    place = {group.name: number for number, group in enumerate(graph.groups)}
    found = []
    for lane in sorted((tuple(n for n in lane if n in place) for lane in lanes), key=lambda lane: place[lane[0]]):
        sizes = {name: graph.group(name).size for name in lane}
        fractions = {Fraction(width, sizes[name]) for name in lane for width in choices(name) if width} | {Fraction(1)}
        whole = sorted(f for f in fractions if all((f * size).denominator == 1 for size in sizes.values()))
        if len(whole) > 1:
            found.append(Decision(lane, tuple({n: int(f * size) for n, size in sizes.items()} for f in whole)))
    return tuple(found)


def stages_of(graph: Graph, children: Callable[[str], Sequence[str]]) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Return the removable blocks of each stage, and whether one of them has to stay.

    A stage is what holds the blocks, such as `layer1`. Where it holds other modules (a block that changes shapes), all
    removable ones may go.

    Args:
        graph: whose blocks can be removed.
        children: name of a module -> names of its immediate children.
    """
    stages: dict[str, list[str]] = {}
    for block in graph.blocks:
        stages.setdefault(row_of(block), []).append(block)
    return {name: (tuple(blocks), set(children(name)) <= set(blocks)) for name, blocks in stages.items()}


def block_of(names: Sequence[str], blocks: Sequence[str]) -> str | None:
    """Return the block that all these groups lie in, if there is one."""
    return next((block for block in blocks if all(inside(name, (block,)) for name in names)), None)
