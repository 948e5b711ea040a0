"""Anchor points, and boxes by their distances from them (Li et al. 2020, "Generalized Focal Loss", section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def anchor_points(sizes: Sequence[tuple[int, int]], strides: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres (A, 2), x and y in pixels, of the cells of maps of these heights and widths, and strides (A,).

    The cells of a map come row by row, the maps in their order; dtype and device are those of `like`.
    """
    points, steps = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) * stride
        y = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) * stride
        points.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], 1))
        steps.append(torch.full((height * width,), float(stride), dtype=like.dtype, device=like.device))
    return torch.cat(points), torch.cat(steps)


def expected_distances(logits: Tensor, bins: int) -> Tensor:
    """Return the mean distances (N, A, 4), in strides, of mixtures of 0, 1, ..., bins - 1 with `logits` (N, A, 4 bins).

    The sides are left, top, right, bottom.
    """
    shares = logits.unflatten(2, (4, bins)).softmax(3)
    found: Tensor = (shares * torch.arange(bins, dtype=logits.dtype, device=logits.device)).sum(3)
    return found


def boxes_around(points: Tensor, distances: Tensor) -> Tensor:
    """Return boxes (..., 4), x1, y1, x2, y2, whose sides are `distances` (..., 4) away from `points` (..., 2)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def distances_to(points: Tensor, boxes: Tensor) -> Tensor:
    """Return how far left, above, right and below of `points` (..., 2) the sides of `boxes` (..., 4) are."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)
