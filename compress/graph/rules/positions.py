"""Operations that pool, resize, pad, sample or transform the positions of every channel by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compress.core.tensors import tensors_in
from compress.graph import axes
from compress.graph.dim_algebra import flatten, split
from compress.graph.recording import Recording
from compress.graph.rules.rule import RULES, SPATIAL, Rule, argument, freeze, places, positions, rule

_RESAMPLED = ("max_pool{}d_with_indices", "max_pool{}d", "avg_pool{}d", "_adaptive_avg_pool{}d", "adaptive_avg_pool{}d",
              "adaptive_max_pool{}d", "fractional_max_pool{}d", "mkldnn_max_pool{}d", "max_unpool{}d",
              "upsample_nearest{}d", "_upsample_nearest_exact{}d", "upsample_linear{}d", "upsample_bilinear{}d",
              "upsample_bicubic{}d", "upsample_trilinear{}d", "_upsample_bilinear{}d_aa", "_upsample_bicubic{}d_aa",
              "_upsample_lanczos{}d_aa", "reflection_pad{}d", "replication_pad{}d")  # fmt: skip


def _resampled(rank: int) -> Rule:
    """Return the rule of an operation over the last `rank` dimensions of its operands."""

    def apply(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        dims = t.of(args[0])
        freeze(dims[-rank:], "it is pooled, padded or resized along")
        if len(args) > 1 and isinstance(args[1], Tensor) and args[1].dim() == len(dims):  # where maxima came from
            freeze(t.of(args[1])[-rank:], SPATIAL)
            for kept, other in zip(dims[:-rank], t.of(args[1])[:-rank], strict=True):
                axes.unify(kept, other)
        for result in tensors_in(out):
            t.set(result, [*dims[:-rank], *positions(result.shape[-rank:])])

    return apply


for _rank in (1, 2, 3):
    RULES.update({name.format(_rank): _resampled(_rank) for name in _RESAMPLED})


@rule("constant_pad_nd")
def _pad(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    for place, (before, after) in enumerate(zip(args[0].shape, out.shape, strict=True)):
        if before != after:
            axes.freeze(dims[place], "it is padded with a fixed number of zeros")
            dims[place] = axes.fresh(after, "it is padded with a fixed number of zeros")
    t.set(out, dims)


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def _grid_sampler(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims, grid = t.of(args[0]), t.of(args[1])
    freeze((*dims[2:], *grid[1:]), SPATIAL)
    axes.unify(dims[0], grid[0])
    t.set(out, [*dims[:2], *positions(out.shape[2:])])


@rule("roi_align", "roi_pool")
def _regions(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """(N, C, H, W) and boxes (K, 5) -> (K, C, h, w)."""
    dims = t.of(args[0])
    freeze((dims[0], *dims[2:], *t.of(args[1])), SPATIAL)
    for result in tensors_in(out):
        number, *size = (result.shape[0], *result.shape[2:])
        t.set(result, [*positions([number]), dims[1], *positions(size)])


@rule("ps_roi_align", "ps_roi_pool")
def _position_sensitive_regions(
    t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]
) -> None:
    """(N, C h w, H, W) and boxes (K, 5) -> (K, C, h, w): every place of the window has channels of its own."""
    dims = t.of(args[0])
    channels, *window = split(dims[1], tuple(out[0].shape[1:]))
    freeze((dims[0], *dims[2:], *window, *t.of(args[1])), SPATIAL)
    for result in out:
        number, *size = (result.shape[0], *result.shape[2:])
        t.set(result, [*positions([number]), channels, *positions(size)])


@rule("im2col")
def _im2col(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """(..., C, H, W) -> (..., C x taps, windows)."""
    *batch, channels, height, width = t.of(args[0])
    freeze((height, width), "windows of it are taken")
    taps = positions([out.shape[-2] // args[0].shape[-3]])
    t.set(out, [*batch, flatten([channels, *taps]), *positions(out.shape[-1:])])


@rule("col2im")
def _col2im(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    *batch, columns, windows = t.of(args[0])
    channels, taps = split(columns, (out.shape[-3], args[0].shape[-2] // out.shape[-3]))
    freeze((taps, windows), SPATIAL)
    t.set(out, [*batch, channels, *positions(out.shape[-2:])])


@rule("unfold", "unfold_copy")
def _unfold(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims, place = list(t.of(args[0])), args[1]
    axes.freeze(dims[place], "windows of it are taken")
    dims[place] = axes.fresh(out.shape[place if place >= 0 else place - 1], SPATIAL)
    t.set(out, [*dims, axes.fresh(out.shape[-1], SPATIAL)])


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def _fourier(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    for place in args[1]:
        axes.freeze(dims[place], "a Fourier transform runs over it")
        dims[place] = axes.fresh(out.shape[place], SPATIAL)
    t.set(out, dims)


@rule("roll")
def _roll(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    moved = argument(args, kwargs, 2, "dims", ())
    shifts = args[1] if moved else [1] * out.dim()
    dims = list(t.of(args[0]))
    for shift, place in zip(shifts, places(moved, out.dim()), strict=True):
        if shift:
            axes.freeze(dims[place], "its positions change places")
    t.set(out, dims)


@rule("flip")
def _flip(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    freeze((dims[place] for place in args[1]), "its positions change places")
    t.set(out, dims)


@rule("rot90")
def _rot90(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    a, b = argument(args, kwargs, 2, "dims", (0, 1))
    freeze((dims[a], dims[b]), "its positions change places")
    if argument(args, kwargs, 1, "k", 1) % 2:
        dims[a], dims[b] = dims[b], dims[a]
    t.set(out, dims)
