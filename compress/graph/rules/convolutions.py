"""Convolutions of any rank, plain, in groups, transposed and deformed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from compress.graph import axes
from compress.graph.axes import ONE, Dim
from compress.graph.dim_algebra import flatten, split
from compress.graph.recording import Recording
from compress.graph.rules.products import note_outputs, note_sizes
from compress.graph.rules.rule import SPATIAL, freeze, positions, rule
from compress.graph.trace import Operation


@rule("convolution", "_convolution")
def _convolution(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
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
    note_sizes(t, nn.modules.conv._ConvNd, in_channels=dims[1], out_channels=outputs)
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


def _join_channels(t: Recording, channels: Dim, kernel: list[Dim], groups: int) -> None:
    """Couple the input channels of a convolution with its kernel (out, in / groups, ...)."""
    if groups == 1:
        axes.unify(channels, kernel[1])
        return
    size = axes.dim_size(channels)
    depthwise = groups == size
    group_in, inner_in = (channels, ONE) if depthwise else split(channels, (groups, size // groups))
    multiplier = axes.dim_size(kernel[0]) // groups
    group_out, inner_out = (kernel[0], ONE) if multiplier == 1 else split(kernel[0], (groups, multiplier))
    axes.unify(group_in, group_out)
    axes.unify(inner_in, kernel[1])
    t.result.grouped += [(group_out, inner_in), (group_out, inner_out)]
    _groups_follow(t, group_out)


def _groups_follow(t: Recording, groups: Dim) -> None:
    """Let a layer's number of groups follow an axis; a functional convolution takes it from the shapes it sees."""
    if isinstance(t.model.get_submodule(t.module), nn.modules.conv._ConvNd):
        t.result.counts[t.module, "groups"] = groups


def _transposed_channels(t: Recording, channels: Dim, kernel: list[Dim], groups: int) -> Dim:
    """Couple a transposed convolution's input with its kernel (in, out / groups, ...); return its output channels."""
    axes.unify(channels, kernel[0])
    if groups == 1:
        return kernel[1]
    if groups == axes.dim_size(channels) and axes.dim_size(kernel[1]) == 1:
        _groups_follow(t, kernel[0])
        return kernel[0]
    group, inner = split(kernel[0], (groups, axes.dim_size(channels) // groups))
    t.result.grouped += [(group, inner), (group, kernel[1])]
    _groups_follow(t, group)
    outputs = flatten([group, kernel[1]])
    if isinstance(t.model.get_submodule(t.module), nn.modules.conv._ConvNd):
        t.result.counts.update({(t.module, "in_channels"): kernel[0], (t.module, "out_channels"): outputs})
    return outputs


@rule("deform_conv2d")
def _deformed_convolution(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    x, weight, offset, mask, bias = args[:5]
    groups, offset_groups = args[11:13]
    dims, kernel = t.of(x), t.of(weight)
    note_outputs(t, [(x, ONE), (weight, kernel[0])])
    freeze((*dims[2:], *kernel[2:], *t.of(offset)[1:], *t.of(mask)[1:]), SPATIAL)
    _join_channels(t, dims[1], kernel, groups)
    if offset_groups > 1:
        outer = split(dims[1], (offset_groups, x.shape[1] // offset_groups))[0]
        axes.freeze(outer, "it numbers the groups of channels that share their offsets")
    if groups > 1:  # how many there are is read off the shapes
        axes.freeze(kernel[0], "a deformed convolution in groups is kept whole")
        axes.freeze(dims[1], "a deformed convolution in groups is kept whole")
    if bias is not None:
        axes.unify(kernel[0], t.of(bias)[0])
    spatial = positions(out.shape[2:])
    t.set(out, [dims[0], kernel[0], *spatial])
    windows = [dims[0], *spatial]
    t.result.operations.append(Operation(t.module, weight.shape[2:].numel(), (kernel[0], kernel[1], *windows)))
