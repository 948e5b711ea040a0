"""Exact selection of the k smallest of many values, through a histogram instead of a sort.

The leading 16 bits of a non-negative float, read as an integer, order like the float itself. They make
32,768 bins, so a rank is located by counting, and only the few values of its own bin have to be sorted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

BINS = 1 << 15
_CHUNK = 1 << 18  # values per pass: temporaries stay in the cache and the peak memory stays small
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bin_edges(dtype: torch.dtype) -> Tensor:
    """Return the (BINS + 1,) lower edges of the bins of a float `dtype`, as float64; the last one is infinite."""
    bits = 8 * dtype.itemsize
    codes = torch.arange(BINS, dtype=torch.int64) << (bits - 16)
    edges = codes.to(_INTEGER[dtype.itemsize]).view(dtype).double()
    return torch.cat([edges.nan_to_num(nan=torch.inf, posinf=torch.inf), edges.new_tensor([torch.inf])])


def histogram(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return, per bin of the absolute values, their count (int64) and the sum of their squares (float64)."""
    count = torch.zeros(BINS, dtype=torch.int64)
    energy = torch.zeros(BINS, dtype=torch.float64)
    for chunk, codes in _coded(values):
        count += torch.bincount(codes, minlength=BINS)
        energy += torch.bincount(codes, weights=chunk.double().square(), minlength=BINS)
    return count, energy


def between(values: Tensor, low: float, high: float) -> Tensor:
    """Return the values v with low <= v < high, in their order."""
    return values[(values >= low) & (values < high)]


def keep_above(values: Tensor, cut: float | Tensor, ties: int) -> Tensor:
    """Return the bool mask of what stays when all below `cut`, and the first `ties` equal to it, are removed."""
    keep = (values >= cut).contiguous()
    if ties:
        keep.view(-1)[(values == cut).flatten().nonzero().view(-1)[:ties]] = False
    return keep


def keep_largest(scores: Sequence[Tensor], remove: int) -> list[Tensor]:
    """Return keep masks that drop exactly the `remove` smallest of all scores together.

    Args:
        scores: non-negative finite float tensors, any shapes; they compete with each other.
        remove: how many to drop; among equal scores the earlier tensor, then the lower index goes first.
    """
    if remove == 0:
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    dtype = reduce(torch.promote_types, (score.dtype for score in scores))
    scores = [score.to(dtype) for score in scores]
    count = torch.zeros(BINS, dtype=torch.int64)
    for score in scores:
        for _, codes in _coded(score):
            count += torch.bincount(codes, minlength=BINS)
    upto = count.cumsum(0)
    edges = bin_edges(dtype)
    code = int(torch.searchsorted(upto, remove))
    rivals = [between(score, float(edges[code]), float(edges[code + 1])) for score in scores]
    rank = remove - int(upto[code] - count[code])
    cut = torch.cat(rivals).kthvalue(rank).values
    ties = rank - sum(int((rival < cut).sum()) for rival in rivals)
    masks = []
    for score, rival in zip(scores, rivals, strict=True):
        mine = min(ties, int((rival == cut).sum()))
        masks.append(keep_above(score, cut, mine))
        ties -= mine
    return masks


def _coded(values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield flat chunks of `values` and the bin of each absolute value."""
    shift = 8 * values.dtype.itemsize - 16
    integer = _INTEGER[values.dtype.itemsize]
    for chunk in torch.split(values.reshape(-1), _CHUNK):
        codes = chunk.abs().view(integer)
        yield chunk, (codes >> shift if shift else codes)
