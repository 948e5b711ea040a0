"""Task segmentation: its metrics against torchmetrics' and a direct computation, its loss, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from compress.core.errors import Diverged, InputError
from compress.distill.losses.kd import kd_loss
from compress.testing.tasks import check_task
from evaluators.datasets.batch import Batch
from evaluators.tasks.segmentation import Segmentation, SegmentationConfig

CLASSES = 4


def task(**options: object) -> Segmentation:
    return SegmentationConfig(**options).bind(CLASSES, (3, 12, 10))  # type: ignore[arg-type]


def batch(count: int = 5, seed: int = 0, ignored: int = 255) -> Batch:
    """Masks of classes 0 to 2 (3 never occurs) with a strip of pixels that do not count."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 3, (count, 12, 10), generator=generator)
    masks[:, 0, :4] = ignored
    return Batch(torch.randn(count, 3, 12, 10, generator=generator), masks)


def logits(given: Batch, size: tuple[int, int] = (12, 10), seed: int = 1) -> Tensor:
    """Logits that are right more often than not, and never for class 3."""
    generator = torch.Generator().manual_seed(seed)
    wanted = F.one_hot(given.targets.where(given.targets < CLASSES, 0), CLASSES).movedim(-1, 1).float()
    found = F.interpolate(2 * wanted + torch.randn(wanted.shape, generator=generator), size)
    found[:, 3] = -9
    return found


def test_metrics_are_torchmetrics_and_a_direct_computation() -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    given, meter = batch(), task().meter()
    found = logits(given)
    for part, outputs in ((given.part(0, 3), found[:3]), (given.part(3, 5), found[3:])):
        meter.update(outputs, part)
    figures = meter.compute()
    winners, masks = found.argmax(1), given.targets
    options = {"num_classes": CLASSES, "ignore_index": 255}
    jaccard = MulticlassJaccardIndex(average="macro", **options)(winners, masks)  # leaves absent classes out
    right = MulticlassAccuracy(average="micro", **options)(winners, masks)
    assert figures["miou"] == pytest.approx(100 * float(jaccard), abs=1e-4)
    assert figures["pixel_accuracy"] == pytest.approx(100 * float(right), abs=1e-4)

    counts, shares = masks != 255, []
    for label in range(CLASSES):
        ours, theirs = (winners == label) & counts, (masks == label) & counts
        if (ours | theirs).any():
            shares.append(float((ours & theirs).sum() / (ours | theirs).sum()))
    assert len(shares) == 3 and figures["miou"] == pytest.approx(100 * sum(shares) / 3)
    assert figures["loss"] == pytest.approx(float(F.cross_entropy(found, masks, ignore_index=255)), rel=1e-5)


def test_a_class_that_is_only_predicted_counts_as_missed() -> None:
    given = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
    found = torch.zeros(1, CLASSES, 2, 2)
    found[0, 0], found[0, 1, 0, 0] = 1.0, 2.0  # three pixels right, one taken for class 1
    meter = task().meter()
    meter.update(found, given)
    assert meter.compute()["miou"] == pytest.approx(100 * (3 / 4 + 0) / 2)


def test_logits_of_a_smaller_map_are_resized_for_loss_and_metrics() -> None:
    given = batch()
    small = logits(given, (6, 5))
    whole = F.interpolate(small, (12, 10), mode="bilinear", align_corners=False)
    assert torch.equal(task().loss(small, given), task().loss(whole, given))
    meters = task().meter(), task().meter()
    for meter, outputs in zip(meters, (small, whole), strict=True):
        meter.update(outputs, given)
    assert meters[0].compute() == meters[1].compute()


def test_auxiliary_heads_count_half_where_the_model_trains() -> None:
    given = batch()
    main, other = logits(given), logits(given, (6, 5), seed=2)
    alone, beside = task().loss(main, given), task().loss(other, given)
    for outputs in ({"out": main, "aux": other}, (main, other)):
        assert torch.allclose(task().loss(outputs, given, nn.Identity()), alone + 0.5 * beside)
        assert torch.equal(task().loss(outputs, given), alone)
        assert task().tensor(outputs) is main


def test_dice_and_class_weights_are_those_of_a_direct_computation() -> None:
    given = batch()
    found, masks = logits(given), given.targets
    weights = [1.0, 0.5, 2.0, 1.0]
    expected = F.cross_entropy(found, masks, torch.tensor(weights), ignore_index=255)
    assert torch.allclose(task(class_weights=weights).loss(found, given), expected)

    dice = []
    for image, mask in zip(found.softmax(1), masks, strict=True):
        counts = mask != 255
        shown = [label for label in range(CLASSES) if (mask[counts] == label).any()]
        each = [
            2 * image[label][counts & (mask == label)].sum()
            / (image[label][counts].sum() + (mask[counts] == label).sum())
            for label in shown
        ]  # fmt: skip
        dice.append(1 - sum(each) / len(each))
    expected = F.cross_entropy(found, masks, ignore_index=255) + 0.5 * sum(dice) / len(dice)
    assert torch.allclose(task(dice=0.5).loss(found, given), expected)
    meter = task(dice=0.5).meter()
    meter.update(found, given)
    assert meter.compute()["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"dice": 1.0, "class_weights": [1.0, 2.0, 1.0, 0.0]}])
def test_training_and_evaluation_can_rely_on_it(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, CLASSES, 3, stride=2)
    check_task(task(**options), batch(), lambda given: {"out": model(given.inputs)})


def test_images_without_a_pixel_that_counts_give_no_nan() -> None:
    given = Batch(torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), 255))
    outputs = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    for options in ({}, {"dice": 1.0}):
        loss = task(**options).loss(outputs, given)
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.item() == 0 and outputs.grad is not None and not outputs.grad.any()
    meter = task().meter()
    meter.update(outputs.detach(), given)
    assert set(meter.compute().values()) == {None}


def test_a_teacher_counts_at_every_pixel_alike() -> None:
    ours, theirs = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    pixels = [each.movedim(1, -1).reshape(-1, 3) for each in (ours, theirs)]
    assert torch.allclose(kd_loss(ours, theirs, 4.0), kd_loss(pixels[0], pixels[1], 4.0))
    with pytest.raises(InputError, match="class maps of 8x8, the model of 4x5"):
        task().check_alike(ours, torch.randn(2, 3, 8, 8))


def test_drawn_losses_estimate_the_gauss_newton_matrix() -> None:
    """The mean square of the gradient is p (1 - p), summed over the pixels of a bias."""
    bias = torch.zeros(CLASSES, requires_grad=True)
    fixed = torch.randn(1, CLASSES, 6, 6, generator=torch.Generator().manual_seed(0))
    draws, generator = torch.zeros(CLASSES), torch.Generator().manual_seed(1)
    for _ in range(400):
        (gradient,) = torch.autograd.grad(task().drawn_loss(fixed + bias[:, None, None], generator), bias)
        draws += gradient.square() / 400
    shares = fixed.softmax(1)
    assert torch.allclose(draws, (shares * (1 - shares)).sum((0, 2, 3)), rtol=0.25)


def test_class_maps_of_a_file_are_compared_by_their_winners() -> None:
    expected = torch.randn(1, CLASSES, 6, 6, generator=torch.Generator().manual_seed(0))
    other = expected.clone()
    other[0, :, 2, 3] = other[0, :, 2, 3].flip(0)
    found = task().disagreement("logits", other, expected, within=1e-4)
    assert found == "at 1 of 36 pixels another class wins than in the model"
    assert task().disagreement("logits", expected, expected, within=1e-4) is None
    assert task().disagreement("logits", expected + 1e-5 * torch.randn(1), expected, within=1e-4) is None


def test_what_is_wrong_is_one_sentence() -> None:
    given = batch()
    found = logits(given)
    beyond = Batch(given.inputs, given.targets.clone())
    beyond.targets[1, 5, 5] = 7
    for refused in (lambda: task().loss(found, beyond), lambda: task().meter().update(found, beyond)):
        with pytest.raises(InputError, match=r"a mask holds the class 7; the model tells 4 apart \(0 to 3\)"):
            refused()
    with pytest.raises(InputError, match="images of 12x10 have masks of 6x5"):
        task().loss(found, Batch(given.inputs, given.targets[:, ::2, ::2]))
    with pytest.raises(InputError, match=r"torch.int64 \(5,\); task segmentation needs masks"):
        task().loss(found, Batch(given.inputs, torch.zeros(5, dtype=torch.long)))
    with pytest.raises(InputError, match=r"it returns \(5, 4\); task segmentation needs logits"):
        task().loss(torch.zeros(5, 4), given)
    with pytest.raises(InputError, match="a dict with the keys boxes; task segmentation needs logits"):
        task().tensor({"boxes": found})
    with pytest.raises(InputError, match="got 2 weights; there are 4 classes"):
        task(class_weights=[1.0, 1.0])
    with pytest.raises(ValidationError, match="all are 0"):
        task(class_weights=[0.0] * 4)
    with pytest.raises(Diverged):
        task().meter().update(found * float("nan"), given)
