"""Products with silenced weights, without the multiplications by zero: what the dense model computes costs less.

A matrix product or convolution whose weight is zero in whole rows and columns gives the same from what is left of the
weight, and zero (or the bias) elsewhere. That is arithmetic on the zeros that are really there: it knows nothing of
groups and their positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

LEAST = 64  # multiplications for one value; below that moving the values takes as long as multiplying them


class Products:
    """Runs the products of a model whose weights have been silenced.

    Args:
        silenced: by the address of its storage a weight, and along each of its dimensions the positions not silenced.
    """

    def __init__(self, silenced: Mapping[int, tuple[Tensor, Mapping[int, Tensor]]]) -> None:
        self.silenced = silenced

    def run(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Return what an operation gives."""
        if name == "convolution" and not args[6] and args[8] == 1:
            values, weight, bias = args[:3]
            stay = self._stay(weight)
            plain = values.is_contiguous() and weight.is_contiguous()  # other layouts live on in what comes out
            if plain and len(stay) == 2 and weight[0].numel() >= LEAST and values[:, 0].numel() >= LEAST:
                own = None if bias is None else bias.index_select(0, stay[0])
                values, part = values.index_select(1, stay[1]), _part(weight, stay)
                return _spread(func(values, part, own, *args[3:], **kwargs), 1, stay[0], len(weight), bias)
        elif name in ("addmm", "mm") and not kwargs:
            bias, (values, weight) = args[0] if name == "addmm" else None, args[-2:]
            stay = self._stay(weight)
            if len(stay) == 2 and min(len(weight), len(values)) >= LEAST and (bias is None or bias.dim() == 1):
                values, part = values.index_select(1, stay[0]), _part(weight, stay)
                own = () if bias is None else (bias.index_select(0, stay[1]),)
                return _spread(func(*own, values, part), 1, stay[1], weight.shape[1], bias)
        return func(*args, **kwargs)

    def _stay(self, weight: Tensor) -> Mapping[int, Tensor]:
        """Return the positions of a weight, or of a transposed one, that are not zero along each dimension."""
        found = self.silenced.get(weight.untyped_storage().data_ptr())
        if found is None or weight.storage_offset() != found[0].storage_offset():
            return {}
        whole, stay = found
        if weight.shape == whole.shape and weight.stride() == whole.stride():
            return stay
        if weight.shape == whole.shape[::-1] and weight.stride() == whole.stride()[::-1]:
            return {whole.dim() - 1 - dim: positions for dim, positions in stay.items()}
        return {}


def _part(weight: Tensor, stay: Mapping[int, Tensor]) -> Tensor:
    if weight.dim() == 2 and weight.stride(0) < weight.stride(1):  # a transposed view, of which it is slow to select
        return _part(weight.t(), {1 - dim: positions for dim, positions in stay.items()}).t()
    for dim in sorted(stay):
        weight = weight.index_select(dim, stay[dim])
    return weight


def _spread(values: Tensor, dim: int, positions: Tensor, size: int, bias: Tensor | None) -> Tensor:
    """Return a tensor of `size` along `dim` with `values` at `positions` and the bias elsewhere."""
    whole = values.new_zeros((*values.shape[:dim], size, *values.shape[dim + 1 :]))
    if bias is not None and bias.any():
        whole += bias.reshape(-1, *[1] * (values.dim() - dim - 1))
    return whole.index_copy_(dim, positions, values)
