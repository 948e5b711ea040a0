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

import torch
from torch import Tensor, nn

from compress.prune import axes
from compress.prune.axes import Axis, Dim
from compress.prune.trace import Limits, Trace, trace

Term = tuple[int, tuple[str, ...]]
Size = tuple[Term, ...]  # a sum of constants times products of kept widths


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
        return _layer_of(self.tensor)


@dataclass(frozen=True)
class Group:
    """A width that can be shortened.

    `repeats` > 1: the index runs inside each of so many heads (or groups of channels); every repeat keeps as many
    units, but which ones may differ, so `rematch` may pair the units of different repeats by importance.
    """

    name: str
    kind: str  # "channels", "heads", "head_dims" or "mlp"
    size: int
    slices: tuple[Slice, ...]
    repeats: int = 1

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers whose outputs become narrower, in the order of the model."""
        return tuple(dict.fromkeys(part.layer for part in self.slices if part.role == "out"))

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
        return replace(self, slices=slices)


@dataclass(frozen=True)
class Skip:
    """A layer that stays whole, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class Operation:
    """A matrix product or convolution of `constant` x the product of `sizes` multiply-accumulates."""

    layer: str
    constant: int
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Graph:
    """All groups of a model, its residual blocks, the layers that stay whole, and its cost as a formula of widths.

    `ties` lists sets of groups that must keep the same fraction of their units.
    """

    groups: tuple[Group, ...]
    skipped: tuple[Skip, ...]
    blocks: tuple[str, ...]
    operations: tuple[Operation, ...]
    tensors: Mapping[str, tuple[Size, ...]]
    parameters: frozenset[str]
    attributes: Mapping[str, Mapping[str, tuple[Size, ...] | Size]]
    ties: tuple[tuple[str, ...], ...] = ()
    everything: Mapping[str, int] = field(default_factory=dict)

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
            if not _inside(op.layer, dropped)
        )

    def params(self, widths: Mapping[str, int] | None = None, dropped: Collection[str] = ()) -> int:
        """Return the number of parameters when groups have these widths and these blocks are gone."""
        kept = {**self.widths(), **(widths or {})}
        return sum(
            prod(evaluate(size, kept) for size in sizes)
            for name, sizes in self.tensors.items()
            if name in self.parameters and not _inside(name, dropped)
        )


def evaluate(size: Size, widths: Mapping[str, int]) -> int:
    """Return the value of a size formula for these widths."""
    return sum(constant * prod(widths[name] for name in names) for constant, names in size)


def stage_of(layer: str) -> str:
    """Return the part of a model a layer belongs to: `layer1`, `layers.0`, `stages.2`, `blocks.3`, `head`."""
    parts = layer.split(":")[0].split(".")
    if len(parts) > 1 and parts[1].isdigit() and not re.search(r"\d$", parts[0]):
        return ".".join(parts[:2])
    return parts[0]


def _inside(layer: str, blocks: Collection[str]) -> bool:
    return any(layer == block or layer.startswith(f"{block}.") for block in blocks)


def build_graph(model: nn.Module, example_inputs: Tensor, limits: Limits | None = None) -> Graph:
    """Trace `model` on `example_inputs` (N, C, H, W) and return what can be removed from it.

    Raises:
        InputError: the model cannot be traced within `limits`; the layer is named.
    """
    found = trace(model, example_inputs, limits)
    _freeze_unusable(found, model)
    slices = _slices(found, model)
    names = _names(slices, model)
    groups = tuple(_group(axis, names[axis], slices[axis]) for axis in slices)
    batch = example_inputs.shape[0]
    operations = tuple(
        Operation(op.layer, op.constant, tuple(_formula(dim, names) for dim in op.dims)) for op in found.operations
    )
    if batch != 1:
        raise ValueError("build_graph counts the MACs of one image: pass a batch of 1")
    return Graph(
        groups=groups,
        skipped=_skipped(found, model),
        blocks=tuple(found.residual_blocks),
        operations=operations,
        tensors={name: tuple(_formula(dim, names) for dim in dims) for name, dims in found.tensors.items()},
        parameters=frozenset(name for name, _ in model.named_parameters()),
        attributes=_attributes(found, model, names),
        everything={group.name: group.size for group in groups},
    )


def _formula(dim: Dim, names: Mapping[Axis, str]) -> Size:
    """Write the size of a dimension as a formula of group widths."""
    terms: dict[tuple[str, ...], int] = {}
    for segment in axes.expand(dim):
        key = tuple(names[axis] for axis in segment if axis in names)
        terms[key] = terms.get(key, 0) + prod(axis.size for axis in segment if axis not in names)
    return tuple((constant, key) for key, constant in terms.items())


def _freeze_unusable(found: Trace, model: nn.Module) -> None:
    """Freeze what shapes allow but meaning does not: an axis squared in one place, a head width that sets the scale."""
    for dims in found.tensors.values():
        for dim in dims:
            for segment in axes.expand(dim):
                for axis in segment:
                    if segment.count(axis) > 1:
                        axis.frozen = axis.frozen or "it occurs twice in one dimension"
    for name in found.unscaled_attention:
        if not holds_scale(model.get_submodule(name)):
            for dim in found.seen.get(name, []):
                for axis in axes.axes_of(dim):
                    if "head_dims" in axis.marks and "heads" not in axis.marks:
                        axis.frozen = axis.frozen or "the attention takes its scale from the width of a head"


def holds_scale(module: nn.Module) -> bool:
    """Return whether an attention can be told to use its stored scale instead of 1/sqrt(head width)."""
    return hasattr(module, "fused_attn") and isinstance(getattr(module, "scale", None), (float, Tensor))


def _slices(found: Trace, model: nn.Module) -> dict[Axis, list[Slice]]:
    """Collect, for every axis that is not frozen, the places in named tensors that it indexes."""
    places: dict[Axis, list[Slice]] = {}
    owners: dict[Axis, list[Axis | None]] = {}
    raw: list[tuple[Axis, str, int, list[tuple[int, axes.Segment]]]] = []
    for name, dims in found.tensors.items():
        for place, dim in enumerate(dims):
            offset = 0
            at: dict[Axis, list[tuple[int, axes.Segment]]] = {}
            for segment in axes.expand(dim):
                for axis in dict.fromkeys(segment):  # not a set: its order follows memory addresses
                    if axis.frozen is None:
                        at.setdefault(axis, []).append((offset, segment))
                        owners.setdefault(axis, []).append(_outer_of(axis, segment))
                offset += axes.segment_size(segment)
            raw += [(axis, name, place, segments) for axis, segments in at.items()]
    for axis, name, place, segments in raw:
        outer = owners[axis][0] if len(set(owners[axis])) == 1 else None
        positions = torch.cat([_positions(axis, outer, offset, segment) for offset, segment in segments], dim=2)
        places.setdefault(axis, []).append(Slice(name, place, positions, _role(found, model, name, place)))
    return {axis: parts for axis, parts in places.items() if any(part.role == "out" for part in parts)}


def _outer_of(axis: Axis, segment: axes.Segment) -> Axis | None:
    """Return the axis that numbers the heads (or groups) in which `axis` counts, if there is one."""
    before = segment[: segment.index(axis)]
    return before[-1] if before else None


def _positions(axis: Axis, outer: Axis | None, offset: int, segment: axes.Segment) -> Tensor:
    """Return the flat positions (size, repeats, k) of each index of `axis` in a segment that starts at `offset`."""
    grid = offset + torch.arange(axes.segment_size(segment)).reshape([a.size for a in segment])
    grid = grid.movedim(segment.index(axis), 0)
    if outer is None:
        return grid.reshape(axis.size, 1, -1)
    rest = [a for a in segment if a is not axis]
    return grid.movedim(1 + rest.index(outer), 1).reshape(axis.size, outer.size, -1)


def _role(found: Trace, model: nn.Module, tensor: str, dim: int) -> str:
    outputs = _output_dims(found, model, tensor)
    return "vector" if not outputs else "out" if dim in outputs else "in"


def _output_dims(found: Trace, model: nn.Module, tensor: str) -> tuple[int, ...]:
    """Return the dimensions of a tensor that number outputs of a layer; none for a tensor that is no matrix."""
    owner, _, leaf = tensor.rpartition(".")
    module = model.get_submodule(owner)
    if leaf == "weight" and isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        return (1,) if getattr(module, "transposed", False) and module.groups == 1 else (0,)
    return found.outputs.get(tensor, ())


def _layer_of(tensor: str) -> str:
    return tensor.rpartition(".")[0].partition(".parametrizations.")[0]


def _names(slices: Mapping[Axis, list[Slice]], model: nn.Module) -> dict[Axis, str]:
    """Give every group the name of its first layer and its kind."""
    names: dict[Axis, str] = {}
    for axis, parts in slices.items():
        first = next(part.layer or part.tensor for part in parts if part.role == "out")
        name = base = f"{first}:{_kind(axis, parts, model)}"
        count = 1
        while name in names.values():
            count += 1
            name = f"{base}{count}"
        names[axis] = name
    return names


def _kind(axis: Axis, parts: list[Slice], model: nn.Module) -> str:
    if "heads" in axis.marks:
        return "heads"
    if "head_dims" in axis.marks:
        return "head_dims"
    inputs = {part.layer for part in parts if part.role == "in"}
    first = model.get_submodule(next(part.layer for part in parts if part.role == "out"))
    lone = len(inputs) == 1 and isinstance(model.get_submodule(next(iter(inputs))), nn.Linear)
    return "mlp" if lone and isinstance(first, nn.Linear) else "channels"


def _group(axis: Axis, name: str, parts: list[Slice]) -> Group:
    repeats = parts[0].positions.shape[1]
    return Group(name, name.rpartition(":")[2].rstrip("0123456789"), axis.size, tuple(parts), repeats)


def _skipped(found: Trace, model: nn.Module) -> tuple[Skip, ...]:
    skipped = {}
    for tensor, dims in found.tensors.items():
        outputs = _output_dims(found, model, tensor)
        if outputs:
            reasons = [axis.frozen for place in outputs for axis in axes.axes_of(dims[place])]
            if all(reason is not None for reason in reasons):
                skipped[_layer_of(tensor) or tensor] = (
                    f"its output stays whole: {reasons[-1] if reasons else 'it has one channel'}"
                )
    return tuple(Skip(layer, reason) for layer, reason in skipped.items())


_WIDTH_NAMES = re.compile(r"dim|embed|feature|channel|width|chs|chans|hidden|inner|planes|shape|size|^[cdnhC]$")


def _attributes(
    found: Trace, model: nn.Module, names: Mapping[Axis, str]
) -> dict[str, dict[str, tuple[Size, ...] | Size]]:
    """Return, for every module, the whole-number attributes that follow a width, as formulas of the widths."""
    result: dict[str, dict[str, tuple[Size, ...] | Size]] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        sizes = {
            leaf: tuple(_formula(dim, names) for dim in found.tensors[f"{prefix}{leaf}"])
            for leaf in ("weight", "running_mean")
            if f"{prefix}{leaf}" in found.tensors
        }
        result[name] = dict(_layer_attributes(module, sizes))
    for (name, attribute), dim in found.counts.items():
        result[name][attribute] = _formula(dim, names)
    for name, attribute in sorted(found.attributes_read):
        formula = _read_attribute(found, model, names, name, attribute)
        if formula is not None and attribute not in result[name]:
            result[name][attribute] = formula
    return {name: attributes for name, attributes in result.items() if attributes}


def _layer_attributes(module: nn.Module, sizes: Mapping[str, tuple[Size, ...]]) -> dict[str, tuple[Size, ...] | Size]:
    """Return the attributes of torch's own layers that repeat the shape of their weight."""
    weight = sizes.get("weight")
    if isinstance(module, nn.Linear) and weight:
        return {"out_features": weight[0], "in_features": weight[1]}
    if isinstance(module, nn.modules.conv._ConvNd) and weight:
        if module.groups == 1:
            first, second = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
            return {first: weight[0], second: weight[1]}
        if module.groups == module.in_channels:
            return {"out_channels": weight[0], "in_channels": weight[0]}
        return {"out_channels": weight[0]}
    if isinstance(module, nn.LayerNorm) and weight:
        return {"normalized_shape": weight}
    if isinstance(module, nn.modules.batchnorm._NormBase) and (weight or "running_mean" in sizes):
        return {"num_features": (weight or sizes["running_mean"])[0]}
    if isinstance(module, nn.GroupNorm) and weight:
        return {"num_channels": weight[0]}
    return {}


def _read_attribute(
    found: Trace, model: nn.Module, names: Mapping[Axis, str], layer: str, attribute: str
) -> tuple[Size, ...] | Size | None:
    """Match a number that the forward pass read with the width it must be: heads by name, widths by value."""
    value = getattr(model.get_submodule(layer), attribute)
    if not isinstance(value, int) or value <= 1:
        return None
    dims = found.seen.get(layer, [])
    about_heads = "head" in attribute and "dim" not in attribute and "size" not in attribute
    if about_heads:
        wanted = [a for dim in dims for a in axes.axes_of(dim) if "heads" in a.marks and a.size == value]
        return ((1, (names[wanted[0]],)),) if wanted and wanted[0] in names else None
    if not _WIDTH_NAMES.search(attribute):
        return None
    single = [((axis,),) for dim in dims for axis in axes.axes_of(dim) if axis.frozen is None]
    whole = [dim for dim in dims if axes.dim_size(dim) == value]
    candidates = [*single, *whole] if "head" in attribute or "key" in attribute else [*whole, *single]
    for dim in candidates:
        formula = _formula(dim, names)
        if axes.dim_size(dim) == value and any(keys for _, keys in formula):
            return formula
    return None
