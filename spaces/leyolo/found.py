"""From what is predicted at anchor points to what is found in an image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

CANDIDATES = 1000
"""Boxes of the best scores, over all classes, that suppression gets to see."""


def found_in(
    boxes: Tensor, scores: Tensor, size: Sequence[int], threshold: float, nms_iou: float, detections: int
) -> dict[str, Tensor]:
    """Return the boxes (M, 4), labels (M,) and scores (M,) that are left of one image, the best first.

    Args:
        boxes: predicted, (A, 4) in pixels.
        scores: of each class, (A, K); class k becomes the label k + 1. A box may be found with several classes.
        size: height and width of the image, which boxes are clipped to.
        threshold: scores must be larger.
        nms_iou: of two boxes of a class that overlap more, the better one stays.
        detections: the most that are left.
    """
    classes = scores.shape[1]
    flat = scores.flatten()
    best, places = flat.topk(min(CANDIDATES, flat.shape[0]))
    likely = best > threshold
    best, places = best[likely], places[likely]
    labels = places % classes
    clipped = clip_boxes_to_image(boxes[places // classes], (int(size[0]), int(size[1])))
    kept = batched_nms(clipped, best, labels, nms_iou)[:detections]
    return {"boxes": clipped[kept], "labels": labels[kept] + 1, "scores": best[kept]}
