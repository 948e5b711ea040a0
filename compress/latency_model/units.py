"""The parts of a model whose times are told apart: layers, and layers together where the runtime fuses them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from compress.graph.axes import Axis, Dim
from compress.graph.graph import Graph, inside
from compress.graph.trace import Step
from compress.latency_model.layers import Place


@dataclass(frozen=True)
class Unit:
    """Layers that are timed as one.

    `groups` are the widths that their tensors have, in the order in which they occur; `block` the residual block that
    they lie in. Units of one `kind` do the same work: they take equally long at equal widths.
    """

    modules: tuple[str, ...]
    groups: tuple[str, ...]
    block: str | None
    kind: Hashable

    @property
    def name(self) -> str:
        """The layer that the unit is called after: the first that holds weights comes first."""
        return self.modules[0]


def find_units(graph: Graph, classes: Mapping[str, str], places: Sequence[Collection[Place]]) -> tuple[Unit, ...]:
    """Return the units of a model.

    Args:
        graph: of the model.
        classes: the class of every module, by name.
        places: for each measured network, where operators belonged; the first is the whole model.
    """
    joined = _Joined()
    for place in dict.fromkeys(place for each in places for place in each):
        blocks = [block_of(module, graph.blocks) for module in place]
        for module, block in zip(place, blocks, strict=True):
            joined.add(module)
            if block == blocks[0]:
                joined.join(place[0], module)
    steps: dict[str, list[Step]] = {}
    for step in graph.record.steps:
        steps.setdefault(step.module, []).append(step)
    order = {name: place for place, name in enumerate(classes)}
    units = []
    for modules in joined.sets():
        own = [step for module in sorted(modules, key=lambda m: order.get(m, -1)) for step in steps.get(module, ())]
        groups, pattern = _pattern(own, graph)
        weighted = {name.rpartition(".")[0] for name in graph.tensors} & set(modules)
        named = sorted(modules, key=lambda module: (module not in weighted, order.get(module, -1)))
        kind = (tuple(classes.get(module, "") for module in named), pattern)
        units.append(Unit(tuple(named), groups, block_of(named[0], graph.blocks), kind))
    return tuple(sorted(units, key=lambda unit: min(order.get(module, -1) for module in unit.modules)))


def block_of(module: str, blocks: Sequence[str]) -> str | None:
    """Return the residual block that a module lies in; the innermost of nested ones."""
    return max((block for block in blocks if inside(module, [block])), key=len, default=None)


class _Joined:
    """Sets of modules; two that share a member become one."""

    def __init__(self) -> None:
        self._of: dict[str, list[str]] = {}

    def add(self, module: str) -> None:
        self._of.setdefault(module, [module])

    def join(self, first: str, second: str) -> None:
        mine, other = self._of[first], self._of[second]
        if mine is not other:
            mine += other
            for module in other:
                self._of[module] = mine

    def sets(self) -> list[list[str]]:
        return list({id(each): each for each in self._of.values()}.values())


def _pattern(steps: Sequence[Step], graph: Graph) -> tuple[tuple[str, ...], Hashable]:
    """Return the groups that steps depend on, and the steps with groups numbered in order in place of their names."""
    sizes, names = graph.widths(), graph.record.names
    numbers: dict[str, int] = {}

    def written(axis: Axis) -> Hashable:
        name = names.get(axis)
        if name is None or name not in sizes or axis.frozen is not None:
            return axis.size
        return numbers.setdefault(name, len(numbers)), sizes[name]

    def dimension(dim: Dim) -> Hashable:
        return tuple(tuple(map(written, segment)) for segment in dim)

    pattern = tuple(
        (step.name, *(tuple(map(dimension, dims)) for dims in (*step.inputs, (), *step.outputs))) for step in steps
    )
    return tuple(numbers), pattern
