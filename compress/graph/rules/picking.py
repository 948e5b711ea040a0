"""Operations that pick, order or place positions by number: indexing, gathering, scattering, sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compress.core.tensors import tensors_in
from compress.graph import axes
from compress.graph.axes import Dim
from compress.graph.recording import Recording
from compress.graph.rules.rule import SPATIAL, argument, freeze, positions, rule, unify_equal

PICKED = "single positions of it are picked out"


def _picked(dims: Sequence[Dim], indices: Sequence[Tensor | None]) -> tuple[list[Dim], int, int]:
    """Freeze the dimensions that `x[indices]` picks from; return those that stay and where how many new ones go.

    A boolean mask picks from as many dimensions as it has and gives one.
    """
    taken: list[int] = []
    parts: list[int] = []  # numbers of the tensors in the list of indices: if they stand together, so does the result
    place = rank = 0
    for number, index in enumerate(indices):
        if index is None:
            place += 1
            continue
        mask = index.dtype in (torch.bool, torch.uint8)
        taken += range(place, place + (index.dim() if mask else 1))
        place += index.dim() if mask else 1
        rank = max(rank, 1 if mask else index.dim())
        parts.append(number)
    freeze((dims[place] for place in taken), PICKED)
    together = parts == list(range(parts[0], parts[0] + len(parts)))
    kept = [dim for place, dim in enumerate(dims) if place not in taken]
    return kept, taken[0] if together else 0, rank


@rule("index", "_unsafe_index")
def _index(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    freeze((dim for index in args[1] if index is not None for dim in t.of(index)), PICKED)
    kept, at, rank = _picked(t.of(args[0]), args[1])
    t.set(out, [*kept[:at], *positions(out.shape[at : at + rank]), *kept[at:]])


@rule("index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_")
def _index_put(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    x, indices, values = args[:3]
    freeze((dim for index in indices if index is not None for dim in t.of(index)), PICKED)
    kept, at, rank = _picked(t.of(x), indices)
    target: list[Dim | None] = [*kept[:at], *[None] * rank, *kept[at:]]
    for place, dim in enumerate(reversed(t.of(values))):
        goal = target[-1 - place] if place < len(target) else None
        if goal is None or axes.dim_size(dim) not in (1, axes.dim_size(goal)):
            axes.freeze(dim, PICKED)
        elif axes.dim_size(dim) != 1:
            axes.unify(goal, dim)
    t.set(out, list(t.of(x)))


@rule("nonzero")
def _nonzero(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    freeze(t.of(args[0]), PICKED)
    t.set(out, positions(out.shape))


@rule("index_select")
def _index_select(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims = list(t.of(args[0]))
    freeze((dims[args[1]], *t.of(args[2])), PICKED)
    dims[args[1]] = axes.fresh(out.shape[args[1]], SPATIAL)
    t.set(out, dims)


@rule("gather")
def _gather(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims, place, chosen = t.of(args[0]), args[1] % max(1, out.dim()), t.of(args[2])
    freeze((dims[place], chosen[place]), PICKED)
    unify_equal(dims, chosen, place, PICKED)
    t.set(out, list(chosen))


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def _scatter(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims, place = t.of(args[0]), args[1] % max(1, out.dim())
    for other in tensors_in(args[2:]):
        if other.dim() == out.dim():
            freeze((dims[place], t.of(other)[place]), PICKED)
            unify_equal(dims, t.of(other), place, PICKED)
    t.set(out, list(dims))


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_", "index_fill",
      "index_fill_")  # fmt: skip
def _index_add(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    dims, place = t.of(args[0]), args[1] % max(1, out.dim())
    freeze((dims[place], *t.of(args[2])), PICKED)
    if len(args) > 3 and isinstance(args[3], Tensor) and args[3].dim() == out.dim():
        axes.freeze(t.of(args[3])[place], PICKED)
        unify_equal(dims, t.of(args[3]), place, PICKED)
    t.set(out, list(dims))


@rule("embedding")
def _embedding(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    table = t.of(args[0])
    axes.freeze(table[0], PICKED)
    t.set(out, [*t.of(args[1]), table[1]])


@rule("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[Tensor]) -> None:
    """Sums, means or maxima of rows of a table (V, C), one for each bag; the other results are where they came from."""
    table = t.of(args[0])
    axes.freeze(table[0], PICKED)
    freeze((dim for tensor in tensors_in(args[1:]) for dim in t.of(tensor)), PICKED)
    t.set(out[0], [*positions(out[0].shape[:1]), table[1]])
    for place in out[1:]:
        t.set(place, positions(place.shape))


@rule("sort", "argsort")
def _sort(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    dims = list(t.of(args[0]))
    place = next((a for a in args[1:] if type(a) is int), kwargs.get("dim", -1))
    if dims:
        axes.freeze(dims[place], "it feeds a sort, which orders its positions")
    for result in tensors_in(out):
        t.set(result, list(dims))


@rule("topk", "kthvalue", "median", "nanmedian", "mode")
def _ranked(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Some positions by rank along one dimension; without a dimension, one of all."""
    dims = list(t.of(args[0]))
    results = list(tensors_in(out))
    if len(results) == 1:
        freeze(dims, "its positions are ranked")
        t.set(results[0], [])
        return
    name = t.operation
    place = argument(args, kwargs, 2 if name in ("topk", "kthvalue") else 1, "dim", -1) % max(1, len(dims))
    axes.freeze(dims[place], "its positions are ranked")
    for result in results:
        ranked = positions(result.shape[place : place + 1]) if result.dim() == len(dims) else []
        t.set(result, [*dims[:place], *ranked, *dims[place + 1 :]])
