"""Matrix products, convolutions and distances: the axes that they contract, and which parameters are their matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from compress.prune import axes
from compress.prune.axes import ONE, Dim
from compress.prune.rules.base import SPATIAL, broadcast, freeze, positions, rule
from compress.prune.trace import Operation, _Tracer

OWN = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
"""Layers of torch's own whose parameters are their matrices; what they give is an activation, whatever they are fed."""


def note_outputs(t: _Tracer, operands: Sequence[tuple[Tensor, Dim]]) -> None:
    """Note of the parameters behind operands of a product which of their dimensions number the product's outputs.

    Each operand comes with the dimension of its own that the product keeps. A parameter of one number for each output
    (a gain) is no matrix, and where a layer of torch's own is fed with parameters (learned queries), only its own are.
    """
    own = isinstance(t.model.get_submodule(t.module), OWN) and all(operand in t.sources for operand, _ in operands)
    t.activation = own
    for operand, outputs in operands:
        wanted = set(axes.axes_of(outputs))
        for name in t.sources.get(operand, ()):
            dims = t.result.tensors[name]
            found = tuple(place for place, dim in enumerate(dims) if not wanted.isdisjoint(axes.axes_of(dim)))
            matrix = any(axes.dim_size(dim) > 1 for place, dim in enumerate(dims) if place not in found)
            if found and matrix and (not own or name.startswith(f"{t.module}.")):
                t.result.outputs.setdefault(name, found)


@rule("convolution", "_convolution")
def _convolution(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    dims, kernel = t.of(x), t.of(weight)
    note_outputs(t, [(x, ONE), (weight, kernel[1] if transposed and groups == 1 else kernel[0])])
    freeze(kernel[2:], SPATIAL)
    spatial = _convolved(dims[2:], args, out)
    if transposed:
        outputs = _transposed_channels(t, dims[1], kernel, groups)
    else:
        outputs = kernel[0]
        _join_channels(t, dims[1], kernel, groups)
    if bias is not None:
        axes.unify(outputs, t.of(bias)[0])
    t.set(out, [dims[0], outputs, *spatial])
    windows = [dims[0], *(dims[2:] if transposed else spatial)]
    t.result.operations.append(Operation(t.module, weight.shape[2:].numel(), (kernel[0], kernel[1], *windows)))


def _convolved(spatial: Sequence[Dim], args: Sequence[Any], out: Tensor) -> list[Dim]:
    """Return what a convolution makes of the dimensions it runs along: a kernel of 1 takes every position by itself."""
    result = []
    for place, dim in enumerate(spatial):
        kernel, stride, padding = args[1].shape[2 + place], *(given[place % len(given)] for given in args[3:5])
        if kernel == stride == 1 and padding == 0 and out.shape[2 + place] == axes.dim_size(dim):
            result.append(dim)
        else:
            axes.freeze(dim, "it is convolved along")
            result += positions(out.shape[2 + place : 3 + place])
    return result


def _join_channels(t: _Tracer, channels: Dim, kernel: list[Dim], groups: int) -> None:
    """Couple the input channels of a convolution with its kernel (out, in / groups, ...)."""
    if groups == 1:
        axes.unify(channels, kernel[1])
        return
    size = axes.dim_size(channels)
    depthwise = groups == size
    group_in, inner_in = (channels, ONE) if depthwise else axes.split(channels, (groups, size // groups))
    multiplier = axes.dim_size(kernel[0]) // groups
    group_out, inner_out = (kernel[0], ONE) if multiplier == 1 else axes.split(kernel[0], (groups, multiplier))
    axes.unify(group_in, group_out)
    axes.unify(inner_in, kernel[1])
    freeze((inner_in, inner_out), "a grouped convolution loses whole groups, not channels of a group")
    _groups_follow(t, group_out)


def _groups_follow(t: _Tracer, groups: Dim) -> None:
    """Let a layer's number of groups follow an axis; a functional convolution takes it from the shapes it sees."""
    if isinstance(t.model.get_submodule(t.module), nn.modules.conv._ConvNd):
        t.result.counts[t.module, "groups"] = groups


def _transposed_channels(t: _Tracer, channels: Dim, kernel: list[Dim], groups: int) -> Dim:
    """Couple a transposed convolution's input with its kernel (in, out / groups, ...); return its output channels."""
    axes.unify(channels, kernel[0])
    if groups == 1:
        return kernel[1]
    if groups == axes.dim_size(channels) and axes.dim_size(kernel[1]) == 1:
        _groups_follow(t, kernel[0])
        return kernel[0]
    freeze(kernel[:2], "a grouped transposed convolution is kept whole")
    return axes.fresh(groups * axes.dim_size(kernel[1]), "a grouped transposed convolution is kept whole")


@rule("deform_conv2d")
def _deformed_convolution(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    x, weight, offset, mask, bias = args[:5]
    groups, offset_groups = args[11:13]
    dims, kernel = t.of(x), t.of(weight)
    note_outputs(t, [(x, ONE), (weight, kernel[0])])
    freeze((*dims[2:], *kernel[2:], *t.of(offset)[1:], *t.of(mask)[1:]), SPATIAL)
    _join_channels(t, dims[1], kernel, groups)
    if offset_groups > 1:
        outer = axes.split(dims[1], (offset_groups, x.shape[1] // offset_groups))[0]
        axes.freeze(outer, "it numbers the groups of channels that share their offsets")
    if groups > 1:  # how many there are is read off the shapes
        axes.freeze(kernel[0], "a deformed convolution in groups is kept whole")
        axes.freeze(dims[1], "a deformed convolution in groups is kept whole")
    if bias is not None:
        axes.unify(kernel[0], t.of(bias)[0])
    t.set(out, [dims[0], kernel[0], *positions(out.shape[2:])])


@rule("mm", "addmm", "addmm_")
def _mm(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    a, b = args[-2:] if len(args) < 4 else args[1:3]
    left, right = t.of(a), t.of(b)
    note_outputs(t, [(a, left[0]), (b, right[1])])
    axes.unify(left[1], right[0])
    dims = [left[0], right[1]]
    _join_sum(t, dims, args[0] if len(args) > 2 else None)
    t.set(out, dims)
    t.result.operations.append(Operation(t.module, 1, (left[0], left[1], right[1])))


@rule("bmm", "baddbmm", "baddbmm_")
def _bmm(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
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


def _heads_follow(t: _Tracer, heads: Dim, width: Dim) -> None:
    """Let the sizes that torch's own attention has stored follow its axes; its first product is queries x keys."""
    layer = t.model.get_submodule(t.module)
    if isinstance(layer, nn.MultiheadAttention) and (t.module, "num_heads") not in t.result.counts:
        weight = f"{t.module}.{'q_proj_weight' if layer.in_proj_weight is None else 'in_proj_weight'}".lstrip(".")
        sizes = {"num_heads": heads, "head_dim": width, "embed_dim": t.result.tensors[weight][1]}
        t.result.counts.update({(t.module, name): dim for name, dim in sizes.items()})


def _join_sum(t: _Tracer, dims: Sequence[Dim], added: Tensor | None) -> None:
    """Couple a product with what is added to it, which may be of size 1 or lack dimensions."""
    for dim, other in zip(reversed(dims), reversed(t.of(added) if added is not None else []), strict=False):
        if axes.dim_size(other) != 1:
            axes.unify(dim, other)


@rule("mv", "addmv", "addmv_")
def _mv(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    a, b = args[-2:] if len(args) < 4 else args[1:3]
    left, right = t.of(a), t.of(b)
    note_outputs(t, [(a, left[0])])
    axes.unify(left[1], right[0])
    _join_sum(t, left[:1], args[0] if len(args) > 2 else None)
    t.set(out, [left[0]])


@rule("dot", "vdot")
def _dot(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    axes.unify(t.of(args[0])[0], t.of(args[1])[0])
    t.set(out, [])


@rule("_cdist_forward", "_euclidean_dist")
def _distances(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """(..., P, M) and (..., R, M) -> (..., P, R)."""
    left, right = t.of(args[0]), t.of(args[1])
    note_outputs(t, [(args[0], left[-2]), (args[1], right[-2])])
    axes.unify(left[-1], right[-1])
    t.set(out, [*broadcast((left[:-2], right[:-2]), out.dim() - 2), left[-2], right[-2]])
