"""What each elementary operation does to the axes of its tensors (`compress.prune.trace`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from compress.prune import axes
from compress.prune.axes import ONE, Dim
from compress.prune.trace import Operation, _tensors_in, _Tracer

Rule = Callable[[_Tracer, Sequence[Any], dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}

SPATIAL = "it is a position, not a width"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for the operations of these names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def _argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _positions(sizes: Sequence[int]) -> list[Dim]:
    return [axes.fresh(n, SPATIAL) for n in sizes]


def broadcast(t: _Tracer, tensors: Sequence[Tensor], rank: int) -> list[Dim]:
    """Return the dimensions of an element-wise result; operands that are not of size 1 share their axes."""
    result: list[Dim] = []
    for place in range(-rank, 0):
        found: Dim = ONE
        for tensor in tensors:
            if tensor.dim() + place >= 0 and tensor.shape[place] != 1:
                dim = t.of(tensor)[place]
                if found == ONE:
                    found = dim
                else:
                    axes.unify(found, dim)
        result.append(found)
    return result


def POINTWISE(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Element-wise operations of any arity, in place or not."""
    operands = [*_tensors_in(args), *_tensors_in(kwargs)]
    for result in _tensors_in(out):
        t.set(result, broadcast(t, operands, result.dim()))


# Those that torch does not tag as pointwise; from `celu_` on: those that torch 2.9 does not.
for _name in ("hardswish", "hardswish_", "mish_", "gelu_", "_prelu_kernel", "masked_fill", "masked_fill_", "threshold_",
              "rrelu_with_noise", "rrelu_with_noise_", "log_sigmoid_forward", "celu_", "elu_", "hardsigmoid_",
              "hardtanh_", "ldexp", "ldexp_", "leaky_relu", "leaky_relu_", "selu_"):  # fmt: skip
    RULES[_name] = POINTWISE


@rule("add", "add_")
def _add(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    POINTWISE(t, args, kwargs, out)
    for added, _ in t.adds:
        added.update(id(operand) for operand in _tensors_in(args))


@rule("clone", "_to_copy", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy", "native_dropout",
      "constant", "_conj", "view_as_real_copy", "to", "dropout", "positive")  # fmt: skip
def _same(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    for result in _tensors_in(out):
        t.set(result, list(t.of(args[0])))


@rule("copy_")
def _copy(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    t.set(out, broadcast(t, args[:2], out.dim()))


@rule("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
      "new_full", "new_empty")  # fmt: skip
def _uniform(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """A tensor of one value is the same for any width; that its shape follows is left to the check of the plan."""
    t.set(out, [axes.fresh(n) for n in out.shape])


@rule("arange", "scalar_tensor", "linspace", "eye", "rand", "randn", "tensor", "empty_strided", "new_empty_strided",
      "fill_", "zero_", "randint", "randperm", "tril_indices", "triu_indices", "_local_scalar_dense",
      "equal")  # fmt: skip
def _constant(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    for result in _tensors_in(out):
        if result not in t.dims:
            t.set(result, [axes.fresh(n, "it is a constant made in the forward pass") for n in result.shape])


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "squeeze", "unsqueeze", "squeeze_",
      "unsqueeze_")  # fmt: skip
def _reshape(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    t.set(out, axes.reshape(t.of(args[0]), list(out.shape)))


@rule("permute", "permute_copy")
def _permute(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = t.of(args[0])
    t.set(out, [dims[place] for place in args[1]])


@rule("transpose", "t", "transpose_", "numpy_T", "mT", "swapaxes")
def _transpose(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    a, b = (args[1], args[2]) if len(args) > 2 else (0, -1)
    if len(dims) > 1:
        dims[a], dims[b] = dims[b], dims[a]
    t.set(out, dims)


@rule("expand", "expand_copy", "expand_as")
def _expand(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = t.of(args[0])
    missing = out.dim() - len(dims)
    dims = [ONE] * missing + list(dims)
    t.set(out, [axes.fresh(n) if axes.dim_size(d) != n else d for d, n in zip(dims, out.shape, strict=True)])


@rule("as_strided", "as_strided_")
def _as_strided(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    if out is not args[0] and out.shape != args[0].shape:
        t.unknown("as_strided", args, kwargs, out)
    else:
        t.set(out, list(t.of(args[0])))


@rule("repeat")
def _repeat(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = [ONE] * (out.dim() - args[0].dim()) + list(t.of(args[0]))
    t.set(out, [axes.flatten([axes.fresh(r, SPATIAL), dim]) for r, dim in zip(args[1], dims, strict=True)])


@rule("select")
def _select(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    axes.freeze(dims.pop(args[1]), "single positions of it are picked out")
    t.set(out, dims)


@rule("slice", "slice_copy")
def _slice(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims, place = list(t.of(args[0])), _argument(args, kwargs, 1, "dim", 0)
    size = args[0].shape[place]
    start, step = _argument(args, kwargs, 2, "start") or 0, _argument(args, kwargs, 4, "step", 1)
    start = max(0, start + size if start < 0 else start)
    if out.shape[place] == size:
        t.set(out, dims)
        return
    if step == 1 and not axes.is_frozen(dims[place]):
        dims[place] = axes.narrow(dims[place], start, out.shape[place])
    else:
        axes.freeze(dims[place], "every n-th position of it is picked out")
        dims[place] = axes.fresh(out.shape[place], SPATIAL)
    t.set(out, dims)


@rule("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "split_copy", "split_with_sizes_copy")
def _split(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    place = _argument(args, kwargs, 2, "dim", 0)
    start = 0
    whole = t.of(args[0])[place]
    for part in out:
        dims = list(t.of(args[0]))
        length = part.shape[place]
        dims[place] = axes.fresh(length, SPATIAL) if axes.is_frozen(whole) else axes.narrow(whole, start, length)
        start += length
        t.set(part, dims)
    _tie_equal_parts(t, out, place)


def _tie_equal_parts(t: _Tracer, parts: Sequence[Tensor], place: int) -> None:
    """Equal parts of a `chunk` must stay equal: the number of positions in each follows from the whole."""
    if len({part.shape[place] for part in parts}) == 1:
        for part in parts[1:]:
            axes.unify(t.of(parts[0])[place], t.of(part)[place])


@rule("unbind")
def _unbind(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    dims = list(t.of(args[0]))
    axes.freeze(dims.pop(_argument(args, kwargs, 1, "dim", 0)), "it is taken apart position by position")
    for part in out:
        t.set(part, list(dims))


@rule("cat", "concat")
def _cat(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    parts = [part for part in args[0] if part.numel()]
    place = _argument(args, kwargs, 1, "dim", 0)
    place = place + out.dim() if place < 0 else place
    dims = list(t.of(parts[0]))
    for part in parts[1:]:
        for other, (a, b) in enumerate(zip(dims, t.of(part), strict=True)):
            if other != place:
                axes.unify(a, b)
    dims[place] = axes.concatenate([t.of(part)[place] for part in parts])
    t.set(out, dims)


@rule("stack")
def _stack(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    parts, place = args[0], _argument(args, kwargs, 1, "dim", 0)
    dims = broadcast(t, parts, parts[0].dim())
    dims.insert(place + out.dim() if place < 0 else place, axes.fresh(len(parts), "it numbers stacked tensors"))
    t.set(out, dims)


@rule("constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def _pad(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    for place, (before, after) in enumerate(zip(args[0].shape, out.shape, strict=True)):
        if before != after:
            axes.freeze(dims[place], "it is padded with a fixed number of zeros")
            dims[place] = axes.fresh(after, "it is padded with a fixed number of zeros")
    t.set(out, dims)


@rule("roll", "flip")
def _move(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    moved = args[2] if len(args) > 2 else args[1] if len(args) > 1 else range(out.dim())
    dims = list(t.of(args[0]))
    for place in moved:
        axes.freeze(dims[place], "its positions change places")
    t.set(out, dims)


@rule("index", "_unsafe_index")
def _index(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims, indices = t.of(args[0]), list(args[1]) + [None] * (args[0].dim() - len(args[1]))
    picked = [place for place, index in enumerate(indices) if index is not None]
    rank = out.dim() - (len(dims) - len(picked))
    adjacent = picked == list(range(picked[0], picked[-1] + 1))
    for place in picked:
        axes.freeze(dims[place], "single positions of it are picked out")
    kept: list[Dim] = [dim for place, dim in enumerate(dims) if place not in picked]
    at = picked[0] if adjacent else 0
    kept[at:at] = _positions(out.shape[at : at + rank])
    t.set(out, kept)


@rule("index_select", "gather", "take_along_dim")
def _index_select(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    axes.freeze(dims[args[1]], "single positions of it are picked out")
    dims[args[1]] = axes.fresh(out.shape[args[1]], SPATIAL)
    t.set(out, dims)


@rule("embedding")
def _embedding(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    table = t.of(args[0])
    axes.freeze(table[0], "single positions of it are picked out")
    t.set(out, [*t.of(args[1]), table[1]])


@rule("mean", "sum", "amax", "amin", "var", "std", "var_mean", "linalg_vector_norm", "norm", "prod", "any", "all",
      "logsumexp", "max", "min", "argmax", "std_mean")  # fmt: skip
def _reduce(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    dims = t.of(args[0])
    for result in _tensors_in(out):
        if result.dim() == len(dims):
            pairs = zip(dims, result.shape, strict=True)
            t.set(result, [dim if axes.dim_size(dim) == n else ONE for dim, n in pairs])
            continue
        wanted = kwargs.get("dim", next((a for a in args[1:] if isinstance(a, (int, list, tuple))), None))
        wanted = range(len(dims)) if wanted is None or wanted == [] else [wanted] if isinstance(wanted, int) else wanted
        gone = {place % len(dims) for place in wanted} if dims else set()
        t.set(result, [dim for place, dim in enumerate(dims) if place not in gone])


@rule("_softmax", "_log_softmax", "cumsum", "_safe_softmax")
def _softmax(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    axes.freeze(dims[args[1]], "a softmax or running sum runs over it")
    t.set(out, dims)


@rule("native_layer_norm")
def _layer_norm(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    x, shape, parameters = args[0], args[1], args[2:4]
    dims = list(t.of(x))
    for parameter in parameters:
        if parameter is not None:
            for a, b in zip(dims[-len(shape) :], t.of(parameter), strict=True):
                axes.unify(a, b)
    t.set(out[0], dims)
    for statistic in out[1:]:
        t.set(statistic, [axes.fresh(n, SPATIAL) for n in statistic.shape])


@rule("_fused_rms_norm", "rms_norm")
def _rms_norm(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    first = next(_tensors_in(out))
    _layer_norm(t, [args[0], args[1], args[2], None], kwargs, [first])
    for other in list(_tensors_in(out))[1:]:
        t.set(other, _positions(other.shape))


@rule("native_group_norm")
def _group_norm(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    x, weight, bias, groups = args[0], args[1], args[2], args[6]
    dims = t.of(x)
    outer = axes.split(dims[1], (groups, x.shape[1] // groups))[0]
    axes.freeze(outer, "it numbers the groups of a group normalisation")
    for parameter in (weight, bias):
        if parameter is not None:
            axes.unify(dims[1], t.of(parameter)[0])
    t.set(out[0], list(dims))
    for statistic in out[1:]:
        t.set(statistic, _positions(statistic.shape))


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_batch_norm_with_update", "batch_norm")  # fmt: skip
def _batch_norm(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    dims = list(t.of(args[0]))
    for parameter in args[1:5]:
        if isinstance(parameter, Tensor):
            axes.unify(dims[1], t.of(parameter)[0])
    results = list(_tensors_in(out))
    t.set(results[0], dims)
    for statistic in results[1:]:
        t.set(statistic, [dims[1]] if list(statistic.shape) == [args[0].shape[1]] else _positions(statistic.shape))


def note_outputs(t: _Tracer, operand: Tensor, outputs: Dim) -> None:
    """Note of the parameters behind an operand of a product which of their dimensions number the product's outputs.

    A parameter of one number for each output (a gain) is no matrix.
    """
    wanted = set(axes.axes_of(outputs))
    for name in t.sources.get(operand, ()):
        dims = t.result.tensors[name]
        places = tuple(place for place, dim in enumerate(dims) if not wanted.isdisjoint(axes.axes_of(dim)))
        if places and any(axes.dim_size(dim) > 1 for place, dim in enumerate(dims) if place not in places):
            t.result.outputs.setdefault(name, places)


@rule("convolution", "_convolution")
def _convolution(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    dims, kernel = t.of(x), t.of(weight)
    note_outputs(t, weight, kernel[1] if transposed else kernel[0])
    taps = weight.shape[2:].numel()
    for dim in kernel[2:]:
        axes.freeze(dim, SPATIAL)
    if transposed:
        outputs = _transposed_channels(t, dims[1], kernel, groups)
    else:
        outputs = kernel[0]
        _join_channels(t, dims[1], kernel, groups)
    if bias is not None:
        axes.unify(outputs, t.of(bias)[0])
    t.set(out, [dims[0], outputs, *_positions(out.shape[2:])])
    positions = (x if transposed else out).shape[2:].numel() * out.shape[0]
    t.result.operations.append(Operation(t.module, positions * taps, (kernel[0], kernel[1])))


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
    for inner in (inner_in, inner_out):
        axes.freeze(inner, "a grouped convolution loses whole groups, not channels of a group")
    if isinstance(t.model.get_submodule(t.module), nn.modules.conv._ConvNd):
        t.result.groups_attribute[t.module] = group_out


def _transposed_channels(t: _Tracer, channels: Dim, kernel: list[Dim], groups: int) -> Dim:
    """Couple a transposed convolution's input with its kernel (in, out / groups, ...); return its output channels."""
    axes.unify(channels, kernel[0])
    if groups == 1:
        return kernel[1]
    for dim in kernel[:2]:
        axes.freeze(dim, "a grouped transposed convolution is kept whole")
    return axes.fresh(groups * axes.dim_size(kernel[1]), "a grouped transposed convolution is kept whole")


@rule("mm", "addmm")
def _mm(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    a, b = args[-2:] if len(args) < 4 else args[1:3]
    left, right = t.of(a), t.of(b)
    note_outputs(t, a, left[0])
    note_outputs(t, b, right[1])
    axes.unify(left[1], right[0])
    t.set(out, [left[0], right[1]])
    if len(args) > 2:
        axes.unify(right[1], t.of(args[0])[-1])
    t.result.operations.append(Operation(t.module, 1, (left[0], left[1], right[1])))


@rule("bmm", "baddbmm")
def _bmm(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    (a, b) = args[-2:] if len(args) < 4 else args[1:3]
    left, right = t.of(a), t.of(b)
    note_outputs(t, a, left[1])
    note_outputs(t, b, right[2])
    axes.unify(left[0], right[0])
    axes.unify(left[2], right[1])
    if a not in t.sources and b not in t.sources:  # a product of activations: attention
        axes.mark(left[0], "heads")
        for dim in (left[1], left[2], right[2]):
            axes.mark(dim, "head_dims")
    dims = [left[0], left[1], right[2]]
    if len(args) > 2:
        for a, b in zip(dims, broadcast(t, [args[0], out], 3) if out in t.dims else t.of(args[0]), strict=True):
            axes.unify(a, b) if axes.dim_size(b) != 1 else None
    t.set(out, dims)
    t.result.operations.append(Operation(t.module, 1, (left[0], left[1], left[2], right[2])))


@rule("mv", "addmv")
def _mv(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    left, right = t.of(args[-2]), t.of(args[-1])
    note_outputs(t, args[-2], left[0])
    axes.unify(left[1], right[0])
    t.set(out, [left[0]])


@rule("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
      "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
      "max_pool3d_with_indices", "avg_pool3d", "adaptive_avg_pool2d", "avg_pool1d", "max_pool2d", "adaptive_avg_pool1d",
      "mkldnn_max_pool2d")  # fmt: skip
def _pool(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    dims = t.of(args[0])
    for result in _tensors_in(out):
        kept = len(dims) - (1 if result.dim() == 3 and args[0].dim() == 3 else args[0].dim() - 2)
        t.set(result, [*dims[:kept], *_positions(result.shape[kept:])])


@rule("im2col")
def _im2col(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    batch, channels = t.of(args[0])[:2]
    taps = axes.fresh(out.shape[1] // args[0].shape[1], SPATIAL)
    t.set(out, [batch, axes.flatten([channels, taps]), *_positions(out.shape[2:])])


@rule("unfold")
def _unfold(t: _Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    axes.freeze(dims[args[1]], "windows of it are taken")
    dims[args[1]] = axes.fresh(out.shape[args[1]], SPATIAL)
    t.set(out, [*dims, axes.fresh(out.shape[-1], SPATIAL)])
