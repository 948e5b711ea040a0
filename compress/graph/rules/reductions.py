"""Sums, means, extremes and running sums: what survives of the axis that they run over.

A sum or a norm over a width is the same when zeros are left out; a mean or a variance is divided by their number, and
extremes and products see the zeros. A mean that only scales or centres the very axis it was taken over is a
normalisation: the axis may be narrowed, and is marked, since the result then differs by design.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compress.core.tensors import tensors_in
from compress.graph import axes
from compress.graph.axes import ONE, Dim
from compress.graph.recording import Recording
from compress.graph.rules.means import Mean, note_sum
from compress.graph.rules.pointwise import POINTWISE
from compress.graph.rules.rule import argument, freeze, places, rule

_DIM_PLACE = {"linalg_vector_norm": 2, "norm": 2, "renorm": 2}


def _reduced(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> list[Dim]:
    """Enter the results of a reduction; return the dimensions that it runs over."""
    dims = t.of(args[0])
    wanted = argument(args, kwargs, _DIM_PLACE.get(t.operation, 1), "dim")
    gone = places(
        wanted if isinstance(wanted, (int, list, tuple)) and not isinstance(wanted, bool) else None, len(dims)
    )
    for result in tensors_in(out):
        if result.dim() == len(dims):
            t.set(result, [ONE if place in gone else dim for place, dim in enumerate(dims)])
        else:
            t.set(result, [dim for place, dim in enumerate(dims) if place not in gone])
    return [dims[place] for place in gone]


@rule("sum", "nansum", "linalg_vector_norm", "norm", "frobenius_norm", "nuclear_norm")
def _sum(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    gone = _reduced(t, args, kwargs, out)
    order = args[1] if t.operation in ("linalg_vector_norm", "norm") and len(args) > 1 else None
    if isinstance(order, (int, float)) and order < 0:
        freeze(gone, "its smallest value is taken")
    note_sum(t, args[:1], gone, out)


@rule("amax", "amin", "aminmax", "max", "min", "prod", "any", "all", "logsumexp", "argmax", "argmin",
      "count_nonzero")  # fmt: skip
def _extreme(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    if len(args) > 1 and isinstance(args[1], Tensor):  # max(a, b)
        POINTWISE(t, args, kwargs, out)
    else:
        freeze(_reduced(t, args, kwargs, out), f"{t.operation} is taken over it")


@rule("mean", "nanmean", "var", "std", "var_mean", "std_mean")
def _mean(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    gone = [dim for dim in _reduced(t, args, kwargs, out) if not axes.is_frozen(dim)]
    for result in tensors_in(out):
        if gone:
            t.means[result] = {Mean(tuple(gone)): False}


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumsum_", "cumprod", "cumprod_", "cummax", "cummin",
      "logcumsumexp", "softmax", "log_softmax")  # fmt: skip
def _softmax(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    dims = list(t.of(args[0]))
    if dims:
        axes.freeze(dims[args[1]], "a softmax or running sum runs over it")
    for result in tensors_in(out):
        t.set(result, list(dims))
