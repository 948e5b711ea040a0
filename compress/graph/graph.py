"""Groups of coupled positions: what can be removed from a model together, and what each choice costs.

A *group* is one width of the network (the channels of a stream, the heads of an attention, the width of its heads,
the hidden units of an MLP) with every place in every tensor that depends on it. A *unit* is one index of a group.
Removing units shortens tensors; MACs and parameters of any choice of widths follow by arithmetic, without a module.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from compress.graph.axes import Axis
from compress.graph.trace import Step

Term = tuple[int, tuple[str, ...]]
Size = tuple[Term, ...]  # a sum of constants times products of kept widths
Formula = Size | tuple[Size, ...]  # of one number, or of each of several


@dataclass(frozen=True)
class Slice:
    """Where the units of a group lie in one tensor.

    `positions` has shape (size, repeats, k): the positions along `dim` that belong to a unit, for each repeat.
    `role` is `out` (rows of a weight), `in` (its input columns) or `vector` (norms, biases, tables, statistics).
    """

    tensor: str
    dim: int
    positions: Tensor
    role: str

    @property
    def layer(self) -> str:
        """The dotted name of the module that owns the tensor; that of a parametrised weight is the layer itself."""
        return layer_of(self.tensor)


@dataclass(frozen=True)
class Group:
    """A width that can be shortened.

    `repeats` > 1: the index runs inside each of so many heads (or groups of channels); every repeat keeps as many
    units, but which ones may differ, so `rematched` may pair the units of different repeats by importance; `order`
    (repeats, size) is how it did. A `rigid` group keeps the same units in every repeat.
    `normalised`: a norm runs over the units (layer norm), so that what stays changes by design when some leave.
    """

    name: str
    kind: str  # "channels", "heads", "head_dims" or "mlp"
    size: int
    slices: tuple[Slice, ...]
    repeats: int = 1
    normalised: bool = False
    rigid: bool = False
    order: Tensor | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers whose outputs become narrower, in the order of the model; parameters of the model's own by name."""
        return tuple(dict.fromkeys(part.layer or part.tensor for part in self.slices if part.role == "out"))

    @property
    def stage(self) -> str:
        """The top-level part of the model that the group begins in."""
        return stage_of(self.name)

    def expanded(self) -> Group:
        """Return the group with every repeat of every unit as a unit of its own (index = repeat * size + unit)."""
        slices = tuple(
            replace(part, positions=part.positions.transpose(0, 1).reshape(self.repeats * self.size, 1, -1))
            for part in self.slices
        )
        return replace(self, size=self.repeats * self.size, slices=slices, repeats=1)

    def rematched(self, order: Tensor) -> Group:
        """Return the group whose unit u is made of unit `order[r, u]` of each repeat r; `order` is (repeats, size)."""
        rows = torch.arange(self.repeats)[:, None].expand(-1, self.size)
        slices = tuple(
            replace(part, positions=part.positions.transpose(0, 1)[rows, order].transpose(0, 1).contiguous())
            for part in self.slices
        )
        return replace(self, slices=slices, order=order)


@dataclass(frozen=True)
class Skip:
    """A layer that stays whole, and why.

    One that is narrowed in another way is listed as `layer:heads`, `layer:channels`, ...: what of it stays whole.
    """

    layer: str
    reason: str


@dataclass(frozen=True)
class Operation:
    """A matrix product or convolution of `constant` x the product of `sizes` multiply-accumulates."""

    layer: str
    constant: int
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Candidate:
    """A number that a module keeps as an attribute, reads in the forward pass, and that equals a width.

    `options` are the widths that it may be, by a label that means the same in all modules of the class `kind`.
    Whether it must follow one of them is found out by trying. Unless the module has `handled` a tensor of such a width
    itself, only what it hands on to its layers has one: then it is left as it is where nothing is refused.
    """

    module: str
    attribute: str
    kind: str
    options: Mapping[str, Formula]
    handled: bool = True


@dataclass(frozen=True)
class Record:
    """The forward passes that a graph was read from.

    `names` gives the group of each axis, `owners` the axis that numbers the repeats (heads) of an axis; the dimensions
    in `steps` (evaluation) and `training_steps` are written in elementary axes; operations that only rearrange are
    left out.
    """

    names: Mapping[Axis, str] = field(default_factory=dict)
    owners: Mapping[Axis, Axis] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    training_steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Graph:
    """All groups of a model, its residual blocks, the layers that stay whole, and its cost as a formula of widths.

    `ties` lists sets of groups that must keep the same fraction of their units. `caches` are what the model keeps of
    former passes (`compress.graph.caches`): the graph is that of the model without them.
    """

    groups: tuple[Group, ...]
    skipped: tuple[Skip, ...]
    blocks: tuple[str, ...]
    operations: tuple[Operation, ...]
    tensors: Mapping[str, tuple[Size, ...]]
    parameters: frozenset[str]
    attributes: Mapping[str, Mapping[str, Formula]]
    ties: tuple[tuple[str, ...], ...] = ()
    everything: Mapping[str, int] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    record: Record = Record()
    caches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def group(self, name: str) -> Group:
        """Return the group called `name`."""
        return next(group for group in self.groups if group.name == name)

    def widths(self) -> dict[str, int]:
        """Return the present number of units of every group, of those that stay whole as well."""
        return {**self.everything, **{group.name: group.size for group in self.groups}}

    def macs(self, widths: Mapping[str, int] | None = None, dropped: Collection[str] = ()) -> int:
        """Return the MACs of one forward pass when groups have these widths and these blocks are gone."""
        kept = {**self.widths(), **(widths or {})}
        return sum(
            op.constant * prod(evaluate(size, kept) for size in op.sizes)
            for op in self.operations
            if not inside(op.layer, dropped)
        )

    def params(self, widths: Mapping[str, int] | None = None, dropped: Collection[str] = ()) -> int:
        """Return the number of parameters when groups have these widths and these blocks are gone."""
        kept = {**self.widths(), **(widths or {})}
        return sum(
            prod(evaluate(size, kept) for size in sizes)
            for name, sizes in self.tensors.items()
            if name in self.parameters and not inside(name, dropped)
        )


def evaluate(size: Size, widths: Mapping[str, int]) -> int:
    """Return the value of a size formula for these widths."""
    total = 0
    for constant, names in size:
        term = constant
        for name in names:
            term *= widths[name]
        total += term
    return total


def value_of(formula: Formula, widths: Mapping[str, int]) -> int | tuple[int, ...]:
    """Return the number, or the numbers, that a formula gives for these widths."""
    if isinstance(formula[0][0], int):
        return evaluate(formula, widths)
    return tuple(evaluate(size, widths) for size in formula)


def stage_of(layer: str) -> str:
    """Return the part of a model a layer belongs to: `layer1`, `layers.0`, `stages.2`, `blocks.3`, `head`."""
    parts = layer.split(":")[0].split(".")
    if len(parts) > 1 and parts[1].isdigit() and not re.search(r"\d$", parts[0]):
        return ".".join(parts[:2])
    return parts[0]


def row_of(block: str) -> str:
    """Return what holds a residual block and those like it: `layer1`, `blocks`, `layers.0.blocks`."""
    return block.rpartition(".")[0]


def layer_of(tensor: str) -> str:
    """Return the layer that owns a named tensor; that of a parametrised weight is the layer itself."""
    return tensor.rpartition(".")[0].partition(".parametrizations.")[0]


def inside(name: str, blocks: Collection[str]) -> bool:
    """Return whether a layer, tensor or group is one of these blocks or lies in one."""
    return any(name == block or name.startswith((f"{block}.", f"{block}:")) for block in blocks)
