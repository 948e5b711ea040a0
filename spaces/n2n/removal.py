"""Which layers of a model can be left out, and which widths become one where they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from compress.graph.graph import Graph, Group, Slice, inside
from spaces.architecture import Architecture, Choice, Condition, Decision
from spaces.channels.choices import Width
from spaces.n2n.chain import Link

_WHOLE = ""
"""Stands for a width that nothing narrows."""


@dataclass(frozen=True)
class Removable:
    """A layer with its batch norm (`parts`), or a residual block, that hands on its input where it is left out.

    `at` is the link of the chain that the decision belongs to. `tie`: the first of two widths becomes the second, since
    a layer that is not there cannot change the number of channels; "" is one that stays whole.
    """

    name: str
    at: str
    parts: tuple[str, ...]
    block: str | None = None
    tie: tuple[str, str] | None = None

    @property
    def decision_name(self) -> str:
        """What its decision is called."""
        return f"{self.name}.keep"


@dataclass(frozen=True)
class Removals:
    """Everything that can be left out, blocks before what is inside them.

    `hollow` are blocks of which nothing is left once all of these layers are gone: they go with the last one, as a
    residual sum of two equal branches is not worth keeping.
    """

    blocks: tuple[Removable, ...]
    layers: tuple[Removable, ...]
    hollow: Mapping[str, tuple[Removable, ...]] = field(default_factory=dict)

    @property
    def all(self) -> tuple[Removable, ...]:
        """Blocks and layers."""
        return self.blocks + self.layers

    def gone(self, arch: Mapping[str, Choice]) -> list[Removable]:
        """Return the layers and blocks that `arch` decides to leave out."""
        return [each for each in self.all if arch.get(each.decision_name) is False]

    def dropped(self, arch: Mapping[str, Choice]) -> tuple[str, ...]:
        """Return the modules that hand on their input in the network of `arch`."""
        gone = self.gone(arch)
        whole = [block for block, layers in self.hollow.items() if all(layer in gone for layer in layers)]
        whole += [each.name for each in gone if each in self.blocks]
        parts = (part for each in gone for part in each.parts if not inside(part, whole))
        return tuple(dict.fromkeys([*whole, *parts]))

    def condition(self, width: Width, graph: Graph) -> Condition | None:
        """Return when `width` is decided: where its block is kept and no layer is left out that makes it another one.

        None where it always is.
        """
        readers = [layer for layer in self.layers if layer.tie is not None and layer.tie[0] in width.groups]
        around = [each for each in self.blocks if all(_within(graph.group(name), each.name) for name in width.groups)]
        names = tuple(each.decision_name for each in (*around, *readers))
        return None if not names else _all_kept(names, [each.name for each in (*around, *readers)])

    def decision(self, removable: Removable) -> Decision:
        """Return the decision on a layer or block; that on a layer is taken where the block around it is kept."""
        around = [each for each in self.blocks if removable.block == each.name]
        names = tuple(each.decision_name for each in around)
        when = _all_kept(names, [each.name for each in around]) if names else None
        return Decision(removable.decision_name, (False, True), when)

    def tied(self, units: Mapping[str, int], arch: Architecture, full: Mapping[str, int]) -> dict[str, int]:
        """Return the units of every group, given those that `arch` decides on: removed layers make two widths one."""
        ties = dict(each.tie for each in self.gone(arch) if each.tie is not None)
        result = {**full, **units}
        for name in ties:
            root = name
            while root in ties:
                root = ties[root]
            result[name] = full[name] if root == _WHOLE else units.get(root, full[root])
        return result


def find_removals(
    module: nn.Module, graph: Graph, chain: Sequence[Link], widths: Sequence[Width], blocks: Sequence[str]
) -> Removals:
    """Return what can be left out of `module`.

    That is every residual block of `blocks`, and every convolution that hands on a map of the shape that it gets. The
    first layer, strided ones, pools and linear layers stay, as in the published code.
    """
    order = {name: place for place, width in enumerate(widths) for name in width.groups}
    alone = {width.groups[0] for width in widths if len(width.groups) == 1}
    layers: list[Removable] = []
    first = next((link.name for link in chain if link.kind == 1), None)
    for link in chain:
        part = module.get_submodule(link.name)
        if link.kind != 1 or not link.passes or link.name == first or not isinstance(part, nn.Conv2d):
            continue
        block = next((each for each in blocks if inside(link.name, [each])), None)
        found = Removable(link.name, link.name, tuple(filter(None, (link.name, link.norm))), block)
        ends = _ends(graph, link.name, part, order)
        if ends is None:
            continue
        if ends[0] != ends[1]:
            found = replace(found, tie=_tie(graph, ends, order, alone))
            if found.tie is None or not _fits(found, layers, graph):
                continue
        layers.append(found)
    return _with_blocks(module, chain, blocks, layers)


def _with_blocks(
    module: nn.Module, chain: Sequence[Link], blocks: Sequence[str], layers: Sequence[Removable]
) -> Removals:
    """Enter the blocks: those of which every layer can go need no decision of their own."""
    hollow: dict[str, tuple[Removable, ...]] = {}
    own: list[Removable] = []
    free = {link.name for link in chain} - {layer.name for layer in layers}
    for block in blocks:
        mine = tuple(layer for layer in layers if layer.block == block)
        held = [name for name, _ in module.named_parameters() if inside(name, [block])]
        if mine and all(inside(name, [part for layer in mine for part in layer.parts]) for name in held):
            hollow[block] = mine
            continue
        at = next((link.name for link in chain if link.name in free and inside(link.name, [block])), None)
        if at is not None:
            own.append(Removable(block, at, (block,)))
    return Removals(tuple(own), tuple(layers), hollow)


def _ends(graph: Graph, layer: str, part: nn.Conv2d, decided: Collection[str]) -> tuple[str, str] | None:
    """Return the widths of a convolution's inputs and outputs, "" for one that stays whole; None where it has several.

    A depthwise convolution has the same on both sides.
    """
    sides = []
    for dim in (1, 0):
        found = [group.name for group, _ in _slices(graph, f"{layer}.weight", dim) if group.name in decided]
        if len(found) > 1:
            return None
        sides.append(found[0] if found else _WHOLE)
    if part.groups > 1:
        return (sides[1], sides[1]) if part.groups == part.in_channels else None
    return sides[0], sides[1]


def _tie(
    graph: Graph, ends: tuple[str, str], order: Mapping[str, int], alone: Collection[str]
) -> tuple[str, str] | None:
    """Return which of two widths is to become the other one, the later; None where units do not match."""
    later, earlier = sorted(ends, key=lambda name: order.get(name, -1), reverse=True)
    sizes = {graph.group(name).size for name in ends if name != _WHOLE}
    simple = all(name in alone and _is_plain(graph.group(name)) for name in ends if name != _WHOLE)
    return (later, earlier) if simple and len(sizes) == 1 else None


def _is_plain(group: Group) -> bool:
    """Return whether a unit is one channel everywhere."""
    return group.kind == "channels" and all(part.positions[0].numel() == 1 for part in group.slices)


def _fits(found: Removable, others: Sequence[Removable], graph: Graph) -> bool:
    """Return whether the width that becomes another one is tied to that alone, and lies in the layer's own block."""
    assert found.tie is not None
    mine = [other.tie for other in others if other.tie is not None and other.tie[0] == found.tie[0]]
    apart = found.block is not None and not _within(graph.group(found.tie[0]), found.block)
    return not apart and all(tie == found.tie for tie in mine)


def _slices(graph: Graph, tensor: str, dim: int) -> Iterator[tuple[Group, Slice]]:
    for group in graph.groups:
        for part in group.slices:
            if part.tensor == tensor and part.dim == dim:
                yield group, part


def _within(group: Group, block: str) -> bool:
    return all(part.tensor.startswith(f"{block}.") for part in group.slices)


def _all_kept(decisions: tuple[str, ...], names: Sequence[str]) -> Condition:
    """Return the condition that none of these is left out."""
    text = f"where {' and '.join(names)} {'is' if len(names) == 1 else 'are'} kept"
    return Condition(text, decisions, lambda taken: all(taken.get(name) is not False for name in decisions))
