"""Matrix products and distances: the axes that they contract, and which parameters are their matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from compress.graph import axes
from compress.graph.axes import ONE, Dim
from compress.graph.dim_algebra import split
from compress.graph.recording import Recording
from compress.graph.rules.means import note_sum
from compress.graph.rules.rule import broadcast, rule
from compress.graph.trace import Operation

OWN = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
"""Layers of torch's own whose parameters are their matrices; what they give is an activation, whatever they are fed."""


def note_outputs(t: Recording, operands: Sequence[tuple[Tensor, Dim]]) -> None:
    """Note of the parameters behind operands of a product which of their dimensions number the product's outputs.

    Each operand comes with the dimension of its own that the product keeps. A parameter of one number for each output
    (a gain) is no matrix. A product of parameters alone becomes a matrix where it meets an activation, unless a layer
    of torch's own is fed with parameters (learned queries): then the layer's own are.
    """
    constant = all(t.sources.get(operand) for operand, _ in operands)
    own = constant and isinstance(t.model.get_submodule(t.module), OWN)
    t.activation = own
    if constant and not own:
        return
    for operand, outputs in operands:
        wanted = set(axes.axes_of(outputs))
        for name in t.sources.get(operand, ()):
            dims = t.result.tensors[name]
            found = tuple(place for place, dim in enumerate(dims) if not wanted.isdisjoint(axes.axes_of(dim)))
            matrix = any(axes.dim_size(dim) > 1 for place, dim in enumerate(dims) if place not in found)
            if found and matrix and (not own or name.startswith(_named(t, ""))):
                t.result.outputs.setdefault(name, found)


def _named(t: Recording, leaf: str) -> str:
    """Return the full name of a tensor of the layer that runs."""
    return f"{t.module}.{leaf}" if t.module else leaf


def note_sizes(t: Recording, kind: type[nn.Module], **sizes: Dim) -> None:
    """Let the sizes that a layer of this kind has stored follow its axes where its weight is no parameter itself."""
    if isinstance(t.model.get_submodule(t.module), kind) and _named(t, "weight") not in t.result.tensors:
        t.result.counts.update({(t.module, name): dim for name, dim in sizes.items()})


@rule("mm", "addmm", "addmm_")
def _mm(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    a, b = args[-2:] if len(args) < 4 else args[1:3]
    left, right = t.of(a), t.of(b)
    note_outputs(t, [(a, left[0]), (b, right[1])])
    axes.unify(left[1], right[0])
    _recurrence_follows(t)
    note_sizes(t, nn.Linear, in_features=left[1], out_features=right[1])
    dims = [left[0], right[1]]
    _join_sum(t, dims, args[0] if len(args) > 2 else None)
    t.set(out, dims)
    t.result.operations.append(Operation(t.module, 1, (left[0], left[1], right[1])))


def _recurrence_follows(t: Recording) -> None:
    """Let the sizes of a recurrent layer follow its axes: one input size, one hidden size for all its directions."""
    layer = t.model.get_submodule(t.module)
    if isinstance(layer, nn.RNNBase) and (t.module, "hidden_size") not in t.result.counts:
        state = [t.result.tensors[_named(t, name)][1] for name, _ in layer.named_parameters() if "weight_hh" in name]
        projections = [t.result.tensors[_named(t, name)] for name, _ in layer.named_parameters() if "weight_hr" in name]
        for others in (state, *zip(*projections, strict=True)):
            for other in others[1:]:
                axes.unify(others[0], other)
        if projections:
            t.result.counts[t.module, "proj_size"] = projections[0][0]
        t.result.counts[t.module, "hidden_size"] = projections[0][1] if projections else state[0]
        t.result.counts[t.module, "input_size"] = t.result.tensors[_named(t, "weight_ih_l0")][1]
    elif isinstance(layer, nn.RNNCellBase):
        t.result.counts[t.module, "hidden_size"] = t.result.tensors[_named(t, "weight_hh")][1]
        t.result.counts[t.module, "input_size"] = t.result.tensors[_named(t, "weight_ih")][1]


@rule("bmm", "baddbmm", "baddbmm_")
def _bmm(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    a, b = args[-2:] if len(args) < 4 else args[1:3]
    left, right = t.of(a), t.of(b)
    note_outputs(t, [(a, left[1]), (b, right[2])])
    axes.unify(left[0], right[0])
    axes.unify(left[2], right[1])
    if a not in t.sources and b not in t.sources:  # a product of activations: attention
        axes.mark(left[0], "heads")
        for dim in (left[1], left[2], right[2]):
            axes.mark(dim, "head_dims")
        _heads_follow(t, left[0], left[2])
    dims = [left[0], left[1], right[2]]
    _join_sum(t, dims, args[0] if len(args) > 2 else None)
    t.set(out, dims)
    t.result.operations.append(Operation(t.module, 1, (left[0], left[1], left[2], right[2])))


def _heads_follow(t: Recording, heads: Dim, width: Dim) -> None:
    """Let the sizes that torch's own attention has stored follow its axes; its first product is queries x keys."""
    layer = t.model.get_submodule(t.module)
    if isinstance(layer, nn.MultiheadAttention) and (t.module, "num_heads") not in t.result.counts:
        samples, rest = divmod(axes.dim_size(heads), layer.num_heads)
        heads = heads if rest else split(heads, (samples, layer.num_heads))[1]  # of every sample
        weight = _named(t, "q_proj_weight" if layer.in_proj_weight is None else "in_proj_weight")
        sizes = {"num_heads": heads, "head_dim": width, "embed_dim": t.result.tensors[weight][1]}
        t.result.counts.update({(t.module, name): dim for name, dim in sizes.items()})


def _join_sum(t: Recording, dims: Sequence[Dim], added: Tensor | None) -> None:
    """Couple a product with what is added to it, which may be of size 1 or lack dimensions."""
    for dim, other in zip(reversed(dims), reversed(t.of(added) if added is not None else []), strict=False):
        if axes.dim_size(other) != 1:
            axes.unify(dim, other)


@rule("mv", "addmv", "addmv_")
def _mv(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    a, b = args[-2:] if len(args) < 4 else args[1:3]
    left, right = t.of(a), t.of(b)
    note_outputs(t, [(a, left[0]), (b, ONE)])
    axes.unify(left[1], right[0])
    _join_sum(t, left[:1], args[0] if len(args) > 2 else None)
    t.set(out, [left[0]])
    note_sum(t, [a, b], left[1:], out)
    t.result.operations.append(Operation(t.module, 1, (left[0], left[1])))


@rule("dot", "vdot")
def _dot(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    axes.unify(t.of(args[0])[0], t.of(args[1])[0])
    t.set(out, [])
    note_sum(t, args[:2], t.of(args[0]), out)
    t.result.operations.append(Operation(t.module, 1, (t.of(args[0])[0],)))


@rule("_trilinear")
def _bilinear(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """Three operands, each with dimensions of size 1 put in, are multiplied and summed over some dimensions."""
    aligned = []
    for operand, added in zip(args[:3], args[3:6], strict=True):
        dims = list(t.of(operand))
        for place in added:
            dims.insert(place, ONE)
        aligned.append(dims)
    note_outputs(t, [(args[0], ONE), (args[1], aligned[1][1]), (args[2], ONE)])
    dims = broadcast(aligned, len(aligned[0]))
    if isinstance(t.model.get_submodule(t.module), nn.Bilinear):
        names = ("out_features", "in1_features", "in2_features")
        t.result.counts.update({(t.module, name): dim for name, dim in zip(names, t.of(args[1]), strict=True)})
    t.set(out, [dim for place, dim in enumerate(dims) if place not in args[6]])
    samples, outputs, left, right = t.of(args[0])[0], *t.of(args[1])
    t.result.operations.append(Operation(t.module, 1, (samples, outputs, left, right)))
    t.result.operations.append(Operation(t.module, 1, (samples, outputs, left)))


@rule("_cdist_forward", "_euclidean_dist")
def _distances(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """(..., P, M) and (..., R, M) -> (..., P, R)."""
    left, right = t.of(args[0]), t.of(args[1])
    note_outputs(t, [(args[0], left[-2]), (args[1], right[-2])])
    axes.unify(left[-1], right[-1])
    t.set(out, [*broadcast((left[:-2], right[:-2]), out.dim() - 2), left[-2], right[-2]])
