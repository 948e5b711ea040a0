"""Assignment, losses, decoding and suppression against plain computations, one number at a time."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from spaces.leyolo.assign import assign
from spaces.leyolo.found import found_in
from spaces.leyolo.loss import GAINS, detection_losses, distribution_focal_loss
from spaces.leyolo.points import anchor_points, boxes_around, expected_distances

BINS, CLASSES = 4, 3
SIZES, STRIDES = [(8, 8), (4, 4)], (8, 16)
BOXES = torch.tensor([[4.0, 6.0, 40.0, 38.0], [20.0, 18.0, 60.0, 62.0], [30.0, 2.0, 52.0, 20.0]])
LABELS = torch.tensor([2, 1, 3])


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared) if shared else 0.0


def complete_iou(one: list[float], other: list[float]) -> float:
    """Zheng et al. 2020, equations 9 to 11."""
    centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (one, other)]
    apart = sum((a - b) ** 2 for a, b in zip(*centres, strict=True))
    hull = [max(one[2 + i], other[2 + i]) - min(one[i], other[i]) for i in (0, 1)]
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (one, other)]
    shape = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    overlap = iou(one, other)
    return overlap - apart / (hull[0] ** 2 + hull[1] ** 2) - shape * shape / (1 - overlap + shape)


def predictions(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points, strides = anchor_points(SIZES, STRIDES, torch.zeros(()))
    sides = torch.randn(2, len(points), 4 * BINS, generator=generator)
    return sides, torch.randn(2, len(points), CLASSES, generator=generator), points, strides


def plain_assignment(scores: Tensor, boxes: Tensor, points: Tensor) -> tuple[list[int], list[float]]:
    """The object of every point and its weight, by loops over points and objects."""
    truth, predicted, at = BOXES.tolist(), boxes.tolist(), points.tolist()
    inside = {
        (m, a) for m, a in product(range(3), range(len(at)))
        if truth[m][0] < at[a][0] < truth[m][2] and truth[m][1] < at[a][1] < truth[m][3]
    }  # fmt: skip
    overlap = {(m, a): iou(truth[m], predicted[a]) for m, a in inside}
    fit = {(m, a): float(scores[a, LABELS[m] - 1]) ** 0.5 * overlap[m, a] ** 6 for m, a in inside}
    wanted = {
        (m, a) for m in range(3) for a in sorted((a for n, a in inside if n == m), key=lambda a: -fit[m, a])[:10]
    }  # fmt: skip
    taken = [
        max((m for m in range(3) if (m, a) in wanted), key=lambda m: overlap[m, a], default=-1) for a in range(len(at))
    ]
    weights = []
    for a, m in enumerate(taken):
        mine = [b for b, n in enumerate(taken) if n == m]
        best = max(fit[m, b] for b in mine) if m >= 0 else 1.0
        weights.append(fit[m, a] / best * max(overlap[m, b] for b in mine) if m >= 0 else 0.0)
    return taken, weights


def decoded(sides: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    return boxes_around(points, expected_distances(sides, BINS) * strides[:, None])


def test_points_are_the_centres_of_cells_row_by_row() -> None:
    points, strides = anchor_points([(2, 3), (1, 2)], (4, 8), torch.zeros(()))
    assert points.tolist() == [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6], [4, 4], [12, 4]]
    assert strides.tolist() == [4] * 6 + [8] * 2


def test_distances_are_means_of_bins() -> None:
    sides, _, points, strides = predictions()
    image, point = 1, 70
    shares = [[math.exp(each) for each in side] for side in sides[image, point].view(4, BINS).tolist()]
    left, top, right, bottom = (sum(i * e for i, e in enumerate(s)) / sum(s) * float(strides[point]) for s in shares)
    x, y = points[point].tolist()
    expected = torch.tensor([x - left, y - top, x + right, y + bottom])
    assert torch.allclose(decoded(sides, points, strides)[image, point], expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_points_are_assigned_as_by_a_loop(seed: int) -> None:
    sides, logits, points, strides = predictions(seed)
    scores, boxes = logits[0].sigmoid(), decoded(sides, points, strides)[0]
    found = assign(scores, boxes, points, BOXES, LABELS - 1)
    taken, weights = plain_assignment(scores, boxes, points)
    assert found.taken.tolist() == taken and set(taken) == {-1, 0, 1, 2}
    assert torch.allclose(found.weights, torch.tensor(weights), atol=1e-5)


def test_distribution_focal_loss_is_the_cross_entropy_with_the_two_bins_around() -> None:
    logits, wanted = torch.randn(3, BINS), torch.tensor([0.25, 2.0, 99.0])
    shares = torch.zeros(3, BINS)
    for row, (bin_, share) in enumerate([(0, 0.75), (2, 1.0), (2, 0.01)]):
        shares[row, bin_], shares[row, min(bin_ + 1, BINS - 1)] = share, 1 - share
    expected = torch.nn.functional.cross_entropy(logits, shares, reduction="none")
    assert torch.allclose(distribution_focal_loss(logits, wanted), expected, atol=1e-5)


def test_losses_are_those_of_a_loop() -> None:
    sides, logits, points, strides = predictions()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    found = detection_losses(sides, logits, points, strides, [{"boxes": BOXES, "labels": LABELS}, nothing])
    boxes = decoded(sides, points, strides)[0]
    taken, weights = plain_assignment(logits[0].sigmoid(), boxes, points)
    total, sums = max(sum(weights), 1.0), dict.fromkeys(GAINS, 0.0)
    for image, a, k in product(range(2), range(len(points)), range(CLASSES)):
        score = float(logits[image, a, k].sigmoid())
        wish = weights[a] if image == 0 and taken[a] >= 0 and LABELS[taken[a]] == k + 1 else 0.0
        sums["classes"] -= wish * math.log(score) + (1 - wish) * math.log(1 - score)
    for a, m in enumerate(taken):
        if m < 0:
            continue
        sums["boxes"] += weights[a] * (1 - complete_iou(boxes[a].tolist(), BOXES[m].tolist()))
        (x, y), (x1, y1, x2, y2) = points[a].tolist(), BOXES[m].tolist()
        wanted = torch.tensor([x - x1, y - y1, x2 - x, y2 - y]) / strides[a]
        each = distribution_focal_loss(sides[0, a].view(4, BINS), wanted)
        sums["distances"] += weights[a] * float(each.mean())
    assert found.keys() == GAINS.keys()
    for name, value in sums.items():
        assert float(found[name]) == pytest.approx(GAINS[name] * value / total, rel=1e-4)


def test_images_without_objects_teach_the_classes_alone() -> None:
    sides, logits, points, strides = (each.requires_grad_() for each in predictions())
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = detection_losses(sides, logits, points, strides, [nothing, nothing])
    assert losses["boxes"].item() == losses["distances"].item() == 0.0 < losses["classes"].item()
    torch.stack(list(losses.values())).sum().backward()
    assert logits.grad is not None and bool(logits.grad.gt(0).all())


def test_suppression_is_that_of_a_loop() -> None:
    sides, logits, points, strides = predictions(5)
    boxes, scores = decoded(sides, points, strides)[0], logits[0].sigmoid()
    found = found_in(boxes, scores, (64, 48), 0.3, 0.5, 20)
    clipped = [[min(max(0.0, each), 64 if i % 2 else 48) for i, each in enumerate(box)] for box in boxes.tolist()]
    ranked = sorted(product(range(len(boxes)), range(CLASSES)), key=lambda each: -float(scores[each]))
    kept: list[tuple[int, int]] = []
    for a, k in ranked:
        if scores[a, k] > 0.3 and all(k != c or iou(clipped[a], clipped[b]) <= 0.5 for b, c in kept):
            kept.append((a, k))
    kept = kept[:20]
    assert found["labels"].tolist() == [k + 1 for _, k in kept]
    assert torch.allclose(found["boxes"], torch.tensor([clipped[a] for a, _ in kept]), atol=1e-4)
    assert torch.equal(found["scores"], torch.stack([scores[each] for each in kept]))
