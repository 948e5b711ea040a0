"""Normalisations. An axis that is normalised over may be narrowed, but is marked: the result differs by design."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from compress.core.tensors import tensors_in
from compress.graph import axes
from compress.graph.axes import Dim
from compress.graph.dim_algebra import split
from compress.graph.recording import Recording
from compress.graph.rules.rule import positions, rule


def _mark(dims: Sequence[Dim]) -> None:
    for dim in dims:
        axes.mark(dim, "normalised")


@rule("native_layer_norm")
def _layer_norm(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    x, shape, parameters = args[0], args[1], args[2:4]
    dims = list(t.of(x))
    for parameter in parameters:
        if parameter is not None:
            for a, b in zip(dims[-len(shape) :], t.of(parameter), strict=True):
                axes.unify(a, b)
    _mark(dims[-len(shape) :])
    t.set(out[0], dims)
    for statistic in out[1:]:
        t.set(statistic, positions(statistic.shape))


@rule("_fused_rms_norm", "rms_norm")
def _rms_norm(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    _layer_norm(t, [args[0], args[1], args[2], None], kwargs, list(tensors_in(out)))


@rule("native_group_norm")
def _group_norm(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    x, weight, bias, groups = args[0], args[1], args[2], args[6]
    dims = t.of(x)
    for parameter in (weight, bias):
        if parameter is not None:
            axes.unify(dims[1], t.of(parameter)[0])
    if groups == x.shape[1]:  # every channel by itself
        if isinstance(t.model.get_submodule(t.module), nn.GroupNorm):
            t.result.counts[t.module, "num_groups"] = dims[1]
    else:
        outer, inner = split(dims[1], (groups, x.shape[1] // groups))
        axes.freeze(outer, "it numbers the groups of a group normalisation")
        _mark([inner])
    t.set(out[0], list(dims))
    for statistic in out[1:]:
        t.set(statistic, positions(statistic.shape))


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm", "batch_norm")  # fmt: skip
def _batch_norm(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Instance norm and the standardisation of weights arrive here as well, reshaped."""
    dims = list(t.of(args[0]))
    for parameter in args[1:5]:
        if isinstance(parameter, Tensor):
            axes.unify(dims[1], t.of(parameter)[0])
    if t.operation == "_batch_norm_with_update" or any(value is True for value in args[3:6]):
        _mark([dims[0], *dims[2:]])
    if isinstance(t.model.get_submodule(t.module), nn.modules.instancenorm._InstanceNorm):
        t.result.counts[t.module, "num_features"] = dims[1]
    results = list(tensors_in(out))
    t.set(results[0], dims)
    for statistic in results[1:]:
        t.set(statistic, [dims[1]] if list(statistic.shape) == [args[0].shape[1]] else positions(statistic.shape))


@rule("_weight_norm_interface", "_weight_norm")
def _weight_norm(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """A direction (out, in, ...) and a length for every position along one dimension."""
    place = args[2] if len(args) > 2 else 0
    direction, length = t.of(args[0]), t.of(args[1])
    axes.unify(direction[place], length[place])
    _mark([dim for other, dim in enumerate(direction) if other != place % len(direction)])
    for result in tensors_in(out):
        t.set(result, list(direction if result.shape == args[0].shape else length))
