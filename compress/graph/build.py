"""From a trace to the groups of coupled positions: which width is which, and where it lies in every named tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.core.tensors import Inputs
from compress.graph import axes
from compress.graph.attributes import candidates, formula, layer_attributes
from compress.graph.axes import Axis, Dim
from compress.graph.graph import Graph, Group, Operation, Record, Skip, Slice, layer_of
from compress.graph.trace import LAYOUT, Step, Trace
from compress.graph.tracer import Limits, trace


def build_graph(model: nn.Module, example_inputs: Inputs, limits: Limits | None = None) -> Graph:
    """Trace `model` on one sample and return what could be removed from it; nothing has been tried out yet.

    Args:
        model: any module.
        example_inputs: a tensor (1, C, H, W), or a tuple or dictionary of what the model takes.
        limits: of the time and memory that the trace may take.

    Raises:
        InputError: the model cannot be traced within `limits`; the layer is named.
    """
    if isinstance(example_inputs, Tensor) and example_inputs.shape[0] != 1:
        raise ValueError("build_graph counts the MACs of one image: pass a batch of 1")
    found = trace(model, example_inputs, limits)
    _freeze_unusable(found)
    slices, owners = _slices(found, model)
    names = _names(slices, model)
    groups = tuple(_group(axis, names[axis], slices[axis]) for axis in slices)
    operations = tuple(
        Operation(op.layer, op.constant, tuple(formula(dim, names) for dim in op.dims)) for op in found.operations
    )
    certain = layer_attributes(found, model, names)
    return Graph(
        groups=groups,
        skipped=_skipped(found, model),
        blocks=tuple(found.residual_blocks),
        operations=operations,
        tensors={name: tuple(formula(dim, names) for dim in dims) for name, dims in found.tensors.items()},
        parameters=frozenset(name for name, _ in model.named_parameters()),
        attributes=certain,
        everything={group.name: group.size for group in groups},
        candidates=candidates(found, model, names, certain),
        record=_record(found, names, owners),
        caches=found.caches,
    )


def _record(found: Trace, names: Mapping[Axis, str], owners: Mapping[Axis, Axis]) -> Record:
    """Write the dimensions of all steps in elementary axes, each once."""
    written: dict[Dim, Dim] = {}

    def elementary(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
        return tuple(written[dim] if dim in written else written.setdefault(dim, axes.expand(dim)) for dim in dims)

    def rewritten(steps: list[Step]) -> tuple[Step, ...]:
        return tuple(
            replace(step, inputs=tuple(map(elementary, step.inputs)), outputs=tuple(map(elementary, step.outputs)))
            for step in steps
            if step.name not in LAYOUT
        )

    return Record(names, owners, rewritten(found.steps), rewritten(found.training_steps))


def _freeze_unusable(found: Trace) -> None:
    """Freeze what shapes allow but meaning does not: an axis squared in one place, a head width that sets the scale.

    And the channels within the groups of a convolution, unless it cannot lose whole groups.
    """
    for dims in found.tensors.values():
        for dim in dims:
            for segment in axes.expand(dim):
                for axis in segment:
                    if segment.count(axis) > 1:
                        axis.frozen = axis.frozen or "it occurs twice in one dimension"
    for name in sorted(found.unscaled_attention):
        for dim in found.seen(name):
            for axis in axes.axes_of(dim):
                if "head_dims" in axis.marks and "heads" not in axis.marks:
                    axis.frozen = axis.frozen or "the attention takes its scale from the width of a head"
    for group, inner in found.grouped:
        if not axes.is_frozen(group):
            axes.freeze(inner, "a grouped convolution loses whole groups, not channels of a group")


def _slices(found: Trace, model: nn.Module) -> tuple[dict[Axis, list[Slice]], dict[Axis, Axis]]:
    """Collect, for every axis that is not frozen, the places in named tensors that it indexes, and its owner."""
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
    inner = {axis: outer[0] for axis, outer in owners.items() if outer[0] is not None and len(set(outer)) == 1}
    for axis, name, place, segments in raw:
        outer = inner.get(axis)
        positions = torch.cat([_positions(axis, outer, offset, segment) for offset, segment in segments], dim=2)
        places.setdefault(axis, []).append(Slice(name, place, positions, _role(found, model, name, place)))
    return {axis: parts for axis, parts in places.items() if any(part.role == "out" for part in parts)}, inner


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
    kind = name.rpartition(":")[2].rstrip("0123456789")
    return Group(name, kind, axis.size, tuple(parts), repeats, normalised="normalised" in axis.marks)


def _skipped(found: Trace, model: nn.Module) -> tuple[Skip, ...]:
    skipped = {}
    for tensor, dims in found.tensors.items():
        outputs = _output_dims(found, model, tensor)
        if outputs:
            reasons = [axis.frozen for place in outputs for axis in axes.axes_of(dims[place])]
            if all(reason is not None for reason in reasons):
                skipped[layer_of(tensor) or tensor] = (
                    f"its output stays whole: {reasons[-1] if reasons else 'it has one channel'}"
                )
    return tuple(Skip(layer, reason) for layer, reason in skipped.items())
