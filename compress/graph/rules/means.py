"""What becomes of a mean (or variance) over a width: a normalisation of that width, or something else.

Leaving out units changes a mean, since it is divided by their number. Where it only centres or scales the axis it was
taken over (layer norm written out, response normalisation), or is held against a threshold, the axis may be narrowed
and is marked `normalised`. Everywhere else the axis stays whole. A sum or norm of parameters that scales these
parameters (spectral norm) marks their axes as well: leaving out silent inputs changes the weights of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from compress.core.tensors import tensors_in
from compress.graph import axes
from compress.graph.axes import Dim
from compress.graph.recording import Recording
from compress.graph.rules.rule import freeze

REASON = "a mean is taken over it, which changes with its width"
_TAKES = {"mean", "nanmean", "var", "std", "var_mean", "std_mean", "sum", "linalg_vector_norm", "norm", "mv", "dot",
          "vdot"}  # fmt: skip
_CENTRES = {"sub", "sub_", "rsub", "div", "div_"}
_INVERTS = {"rsqrt", "rsqrt_", "reciprocal", "reciprocal_"}
_COMPARES = {"gt", "ge", "lt", "le"}  # a threshold on a mean picks positions by what stays, as a norm does
_CARRIES = _CENTRES | _INVERTS | {
    "add", "add_", "mul", "mul_", "neg", "pow", "pow_", "sqrt", "sqrt_", "square", "abs", "clamp", "clamp_",
    "clamp_min", "clamp_min_", "maximum", "expand", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze",
    "permute", "transpose", "_to_copy", "clone", "detach", "alias",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean over the product of some dimensions; `sums` if it is a sum, which zeros do not change."""

    dims: tuple[Dim, ...]
    sums: bool = False


def note_sum(t: Recording, operands: Sequence[Tensor], dims: Sequence[Dim], out: Tensor) -> None:
    """Note that a result is a sum of parameters alone over `dims`, and over what its operands were summed over."""
    dims = [dim for dim in dims if not axes.is_frozen(dim)]
    if all(operand in t.sources for operand in operands):
        earlier = {mean: inverse for operand in operands for mean, inverse in t.means.get(operand, {}).items()}
        t.means[out] = {**earlier, **({Mean(tuple(dims), True): False} if dims else {})}


def follow_means(t: Recording, args: Any, kwargs: Any, out: Any) -> None:
    """See what the operation that just ran does to the means among its operands.

    `t.means` holds of every tensor the means in it, each with whether its inverse is meant.
    """
    operands = [*tensors_in(args), *tensors_in(kwargs)]
    found: dict[Mean, bool] = {}
    for operand in operands:
        found.update(t.means.get(operand, {}))
    if not found:
        return
    carried = {}
    for mean, inverse in found.items():
        own = {axis for dim in mean.dims for axis in axes.axes_of(dim)}
        others = (operand for operand in operands if mean not in t.means.get(operand, {}))
        meets = any(not own.isdisjoint(axes.axes_of(dim)) for operand in others for dim in t.of(operand))
        scales = t.operation in _CENTRES or (inverse and t.operation in ("mul", "mul_"))
        if (meets and scales) or (t.operation in _COMPARES and not mean.sums):
            for dim in mean.dims:
                axes.mark(dim, "normalised")
        elif not meets and t.operation in _CARRIES:
            carried[mean] = inverse or t.operation in _INVERTS or _negative_power(t, args)
        elif not mean.sums:
            freeze(mean.dims, REASON)
    for result in tensors_in(out):
        t.means[result] = {**carried, **(t.means.get(result, {}) if t.operation in _TAKES else {})}


def _negative_power(t: Recording, args: Any) -> bool:
    return t.operation in ("pow", "pow_") and isinstance(args[1], (int, float)) and args[1] < 0


def freeze_means(t: Recording, tensors: Iterable[Any]) -> None:
    """Keep whole what the means in these tensors (the outputs of the model) were taken over."""
    for tensor in tensors:
        for mean in t.means.get(tensor, {}):
            if not mean.sums:
                freeze(mean.dims, REASON)
