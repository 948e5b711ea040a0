"""Whether two networks are the same: by their outputs."""

from __future__ import annotations

from torch import Tensor

from compress.core.errors import CompressError

TOLERANCE = 1e-6
"""Largest difference between the outputs of a member and of what it was made of, relative to the largest."""


def compare(outputs: Tensor, expected: Tensor, what: str) -> None:
    """Raise CompressError, which says `what`, where outputs differ by more than `TOLERANCE` of the largest."""
    largest = float((outputs - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not largest <= TOLERANCE:
        raise CompressError(f"{what}: their outputs differ by {largest:.1e} of the largest")
