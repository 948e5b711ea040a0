"""Which anchor points learn which object: task-aligned assignment (Feng et al. 2021, "TOOD", section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

CANDIDATES = 10
"""Anchor points that an object takes: those of the best alignment."""
SCORE_POWER, OVERLAP_POWER = 0.5, 6.0
"""Of score and overlap in the alignment s^0.5 u^6; the authors of TOOD take 1 and 6, YOLOv8 and LeYOLO these."""
_TINY = 1e-9


@dataclass(frozen=True)
class Assignment:
    """What the anchor points of one image learn.

    Attributes:
        taken: the object of each anchor point, int64 (A,); -1 for the background.
        weights: how well each is aligned with its object, in terms of the best one's overlap: float (A,), 0 to 1, 0 in
            the background. It is the score that the object's class is to get.
    """

    taken: Tensor
    weights: Tensor


@torch.no_grad()
def assign(scores: Tensor, predicted: Tensor, points: Tensor, boxes: Tensor, classes: Tensor) -> Assignment:
    """Return which of an image's anchor points learn which of its objects.

    Every object takes, of the points within its box, the ten that align best; a point that several want goes to the one
    that its predicted box overlaps most.

    Args:
        scores: of each class, (A, K), 0 to 1.
        predicted: boxes (A, 4) in pixels.
        points: (A, 2) in pixels.
        boxes: of the objects, (M, 4) in pixels; M may be 0.
        classes: of the objects, int64 (M,), from 0.
    """
    if len(boxes) == 0:
        return Assignment(torch.full_like(points[:, 0], -1, dtype=torch.int64), torch.zeros_like(points[:, 0]))
    x, y = points[:, 0], points[:, 1]
    within = torch.stack([x - boxes[:, :1], y - boxes[:, 1:2], boxes[:, 2:3] - x, boxes[:, 3:] - y]).amin(0) > _TINY
    overlap = box_iou(boxes, predicted) * within  # (M, A)
    alignment = scores[:, classes].T ** SCORE_POWER * overlap**OVERLAP_POWER * within
    places = alignment.topk(min(CANDIDATES, len(points)), 1).indices
    wanted = torch.zeros_like(within).scatter_(1, places, True) & within
    taken = torch.where(wanted.any(0), torch.where(wanted, overlap, -1.0).argmax(0), -1)
    mine = torch.zeros_like(wanted).scatter_(0, taken.clamp(min=0)[None], (taken >= 0)[None])
    alignment, overlap = alignment * mine, overlap * mine
    scaled = alignment / alignment.amax(1, keepdim=True).clamp(min=_TINY) * overlap.amax(1, keepdim=True)
    return Assignment(taken, scaled.amax(0))
