"""What LeYOLO is trained to lose little of: classes, boxes, and the distances that boxes are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from spaces.leyolo.assign import assign
from spaces.leyolo.points import boxes_around, distances_to, expected_distances

GAINS = {"classes": 0.5, "boxes": 7.5, "distances": 1.5}
"""How much each loss counts, as in YOLOv8, whose training LeYOLO takes over."""


def detection_losses(
    side_logits: Tensor,
    class_logits: Tensor,
    points: Tensor,
    strides: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Return the weighted losses of a batch by name, each a scalar; their sum is the loss.

    Classes by binary cross entropy with the alignment as the wanted score, boxes by 1 - CIoU, distances by distribution
    focal loss; each is summed over anchor points and divided by the sum of all wanted scores.

    Args:
        side_logits: of the distances of the four sides, (N, A, 4 bins).
        class_logits: (N, A, K).
        points: (A, 2) in pixels.
        strides: (A,) in pixels.
        targets: of each image, boxes (M, 4) in pixels and labels int64 (M,) from 1.
    """
    side_logits, class_logits = side_logits.float(), class_logits.float()
    points, strides = points.float(), strides.float()
    bins = side_logits.shape[2] // 4
    predicted = boxes_around(points, expected_distances(side_logits, bins) * strides[:, None])
    scores = class_logits.detach().sigmoid()
    wanted = torch.zeros_like(class_logits)
    images, places, truths, weights = [], [], [], []
    for image, target in enumerate(targets):
        truth, classes = target["boxes"].float(), target["labels"] - 1
        found = assign(scores[image], predicted[image].detach(), points, truth, classes)
        where = (found.taken >= 0).nonzero()[:, 0]
        taken = found.taken[where]
        wanted[image, where, classes[taken]] = found.weights[where]
        images.append(torch.full_like(where, image))
        places.append(where)
        truths.append(truth[taken])
        weights.append(found.weights[where])
    at, where, truth, weight = torch.cat(images), torch.cat(places), torch.cat(truths), torch.cat(weights)
    apart = complete_box_iou_loss(predicted[at, where], truth, reduction="none")
    sides = distances_to(points[where], truth) / strides[where, None]
    unlike = distribution_focal_loss(side_logits[at, where].unflatten(1, (4, bins)), sides).mean(1)
    losses = {
        "classes": F.binary_cross_entropy_with_logits(class_logits, wanted, reduction="sum"),
        "boxes": (apart * weight).sum(),
        "distances": (unlike * weight).sum(),
    }
    return {name: GAINS[name] * loss / weight.sum().clamp(min=1.0) for name, loss in losses.items()}


def distribution_focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the loss (...) of mixtures of 0, ..., bins - 1 with `logits` (..., bins), for distances `wanted` (...).

    The cross entropies of the two whole numbers around the distance, each weighed by how near it is (Li et al. 2020,
    equation 6). Distances beyond the last bin count as just before it.
    """
    last = logits.shape[-1] - 1
    wanted = wanted.clamp(0, last - 0.01)
    below = wanted.floor()
    log_shares = logits.log_softmax(-1)
    lower = log_shares.gather(-1, below.long()[..., None])[..., 0]
    upper = log_shares.gather(-1, below.long()[..., None] + 1)[..., 0]
    return -(lower * (below + 1 - wanted) + upper * (wanted - below))
