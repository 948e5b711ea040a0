"""Operations that arrange positions in another shape: views, permutations, parts and joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compress.graph import axes
from compress.graph.axes import ONE
from compress.graph.dim_algebra import PARTS, concatenate, flatten, narrow, reshape, split
from compress.graph.recording import Recording
from compress.graph.rules.rule import SPATIAL, argument, broadcast, freeze, places, positions, rule


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "squeeze", "unsqueeze", "squeeze_",
      "unsqueeze_")  # fmt: skip
def _reshape(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    if out.numel():
        t.set(out, reshape(t.of(args[0]), list(out.shape)))
    else:
        freeze(t.of(args[0]), "it holds nothing")
        t.set(out, positions(out.shape))


@rule("permute", "permute_copy")
def _permute(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = t.of(args[0])
    t.set(out, [dims[place] for place in args[1]])


@rule("transpose", "t", "t_", "transpose_", "numpy_T", "mT", "swapaxes")
def _transpose(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    a, b = (args[1], args[2]) if len(args) > 2 else (0, -1)
    if len(dims) > 1:
        dims[a], dims[b] = dims[b], dims[a]
    t.set(out, dims)


@rule("expand", "expand_copy", "expand_as")
def _expand(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = t.of(args[0])
    missing = out.dim() - len(dims)
    dims = [ONE] * missing + list(dims)
    t.set(out, [axes.fresh(n) if axes.dim_size(d) != n else d for d, n in zip(dims, out.shape, strict=True)])


@rule("as_strided", "as_strided_")
def _as_strided(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    if out is not args[0] and (out.shape != args[0].shape or out.stride() != args[0].stride()):
        t.unknown("as_strided", args, kwargs, out)
    else:
        t.set(out, list(t.of(args[0])))


@rule("repeat")
def _repeat(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """Copies one after the other are the same however many; that their number follows is left to the check."""
    dims = [ONE] * (out.dim() - args[0].dim()) + list(t.of(args[0]))
    t.set(out, [flatten([axes.fresh(times), dim]) for times, dim in zip(args[1], dims, strict=True)])


@rule("select")
def _select(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims, place = list(t.of(args[0])), args[1] % args[0].dim()
    source, size = t.parts.selecting(args[0], place), args[0].shape[place]
    numbers = dims.pop(place)
    t.set(out, dims)
    t.parts.note_one(out, source, args[2] % size, size, numbers)


@rule("diagonal")
def _diagonal(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = t.of(args[0])
    taken = places((argument(args, kwargs, 2, "dim1", 0), argument(args, kwargs, 3, "dim2", 1)), len(dims))
    freeze((dims[place] for place in taken), "single positions of it are picked out")
    t.set(out, [*(d for place, d in enumerate(dims) if place not in taken), *positions(out.shape[-1:])])


@rule("slice", "slice_copy")
def _slice(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims, place = list(t.of(args[0])), argument(args, kwargs, 1, "dim", 0)
    size = args[0].shape[place]
    start, step = argument(args, kwargs, 2, "start") or 0, argument(args, kwargs, 4, "step", 1)
    start = max(0, start + size if start < 0 else start)
    if out.shape[place] == size:
        t.set(out, dims)
        return
    if step == 1 and not axes.is_frozen(dims[place]) and out.shape[place]:
        dims[place] = narrow(dims[place], start, out.shape[place])
    elif start < step and out.shape[place] * step == size and not axes.is_frozen(dims[place]):
        dims[place], within = split(dims[place], (out.shape[place], step))  # one of every pair: pairs may go
        axes.freeze(within, "every n-th position of it is picked out")
    else:
        axes.freeze(dims[place], "every n-th position of it is picked out")
        dims[place] = axes.fresh(out.shape[place], SPATIAL)
    t.set(out, dims)


@rule("split_with_sizes", "unsafe_split_with_sizes", "split_with_sizes_copy")
def _split_with_sizes(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    place = argument(args, kwargs, 2, "dim", 0)
    start, whole = 0, t.of(args[0])[place]
    equal = len({part.shape[place] for part in out}) == 1
    followed = t.parts.operation in t.parts.followed
    if followed or (equal and len(out) > 1 and axes.is_inner(whole)):
        numbers, inner = split(whole, (len(out), out[0].shape[place]))
        if not followed:
            axes.freeze(numbers, PARTS)
        for part in out:
            t.set(part, [inner if other == place % part.dim() else dim for other, dim in enumerate(t.of(args[0]))])
        t.parts.note(out, numbers)
        return
    for part in out:
        dims = list(t.of(args[0]))
        length = part.shape[place]
        dims[place] = axes.fresh(length, SPATIAL) if axes.is_frozen(whole) else narrow(whole, start, length)
        start += length
        t.set(part, dims)
    if equal:
        _tie_equal_parts(t, out, place)


@rule("split", "chunk", "unsafe_chunk", "unsafe_split", "split_copy")
def _split(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    """Parts of one size; where the last is shorter, the sizes of all would change with the whole."""
    place = argument(args, kwargs, 2, "dim", 0)
    if out[0].shape[place] != out[-1].shape[place]:
        axes.freeze(t.of(args[0])[place], "it is split into uneven parts, whose sizes follow from the whole")
    _split_with_sizes(t, args, kwargs, out)


def _tie_equal_parts(t: Recording, parts: Sequence[Tensor], place: int) -> None:
    """Equal parts of a `chunk` must stay equal: the number of positions in each follows from the whole."""
    for part in parts[1:]:
        axes.unify(t.of(parts[0])[place], t.of(part)[place])
    t.parts.note(parts, None)


@rule("glu")
def _gated(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """The first half times a function of the second."""
    dims, place = list(t.of(args[0])), argument(args, kwargs, 1, "dim", -1)
    half = out.shape[place]
    values, gates = narrow(dims[place], 0, half), narrow(dims[place], half, half)
    axes.unify(values, gates)
    dims[place] = values
    t.set(out, dims)


@rule("unbind")
def _unbind(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    dims = list(t.of(args[0]))
    numbers = dims.pop(argument(args, kwargs, 1, "dim", 0))
    for part in out:
        t.set(part, list(dims))
    t.parts.note(out, numbers)


@rule("cat", "concat")
def _cat(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    parts = [part for part in args[0] if part.numel()]
    if not parts:
        t.set(out, positions(out.shape))
        return
    place = argument(args, kwargs, 1, "dim", 0)
    place = place + out.dim() if place < 0 else place
    dims = list(t.of(parts[0]))
    for part in parts[1:]:
        for other, (a, b) in enumerate(zip(dims, t.of(part), strict=True)):
            if other != place:
                axes.unify(a, b)
    numbers = t.parts.numbers(parts)
    if numbers is None:
        dims[place] = concatenate([t.of(part)[place] for part in parts])
    else:
        dims[place] = flatten([numbers, dims[place]])
    t.set(out, dims)


@rule("stack")
def _stack(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    parts, place = args[0], argument(args, kwargs, 1, "dim", 0)
    dims = broadcast([t.of(part) for part in parts], parts[0].dim())
    numbers = t.parts.numbers(parts) or axes.fresh(len(parts), "it numbers stacked tensors")
    dims.insert(place + out.dim() if place < 0 else place, numbers)
    t.set(out, dims)


@rule("pixel_shuffle")
def _pixel_shuffle(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """(C r r, H, W) -> (C, H r, W r): every group of r x r channels becomes one."""
    *rest, channels, height, width = t.of(args[0])
    channel, *block = split(channels, (out.shape[-3], args[1], args[1]))
    freeze((*block, height, width), SPATIAL)
    t.set(out, [*rest, channel, *positions(out.shape[-2:])])


@rule("pixel_unshuffle")
def _pixel_unshuffle(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    *rest, channels, height, width = t.of(args[0])
    freeze((height, width), SPATIAL)
    t.set(out, [*rest, flatten([channels, *positions((args[1], args[1]))]), *positions(out.shape[-2:])])


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """(N, groups x c, ...) -> (N, c x groups, ...); the number of groups is given by the model."""
    dims = list(t.of(args[0]))
    group, inner = split(dims[1], (args[1], out.shape[1] // args[1]))
    axes.freeze(group, "it numbers the groups of a channel shuffle")
    dims[1] = flatten([inner, group])
    t.set(out, dims)
