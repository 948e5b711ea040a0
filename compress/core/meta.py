"""Modules without storage, on torch's device meta: made and run for the shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_FILLS = {
    aten.zero_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.normal_.default, aten.uniform_.default,
    aten.erfinv_.default, aten.clamp_.default,
}  # fmt: skip
_POINTWISE = {
    aten.relu.default, aten.hardtanh.default, aten.silu.default, aten.gelu.default, aten.sigmoid.default,
    aten.tanh.default, aten.hardswish.default, aten.hardsigmoid.default, aten.relu_.default, aten.hardtanh_.default,
    aten.silu_.default, aten.hardswish_.default, aten.hardsigmoid_.default,
}  # fmt: skip
_PAIRS = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.add_.Tensor, aten.mul_.Tensor, aten.mul.Scalar,
    aten.mul_.Scalar, aten.add_.Scalar,
}  # fmt: skip
_NORMS = {aten._native_batch_norm_legit_no_training.default, aten.native_batch_norm.default}
_TRAINING = 5
"""Which argument of a norm says that it takes the batch's statistics; only the second kind of `_NORMS` has it."""


class ShapesAlone(TorchDispatchMode):
    """Spares tensors on the device meta what only computes values.

    Torch works out their shapes in Python, those of a batch norm in forty steps. What fills a tensor, and what gives
    floats of its first operand's shape, needs none; everything else runs as it is.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what `func` gives."""
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.is_meta and first.is_floating_point():
            if func in _FILLS:
                return first
            if func in _POINTWISE or (func in _PAIRS and _alike(first, args[1])):
                return first if func.__name__.split(".")[0].endswith("_") else first.detach()
            if func in _NORMS and not (len(args) == 8 and args[_TRAINING]):
                nothing = first.new_empty(0)
                return first.detach(), nothing, nothing
        return func(*args, **(kwargs or {}))


def _alike(first: Tensor, second: Any) -> bool:
    """Return whether what both give has the shape and the type of `first`."""
    if isinstance(second, Tensor):
        return second.is_meta and second.dtype == first.dtype and second.shape == first.shape
    return isinstance(second, int | float)


@contextmanager
def without_storage() -> Iterator[None]:
    """Make modules without storage in the block: on the device meta."""
    with torch.device("meta"), ShapesAlone():
        yield
