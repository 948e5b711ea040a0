"""Task detection: COCO's mean average precision against torchmetrics' and a direct computation, losses, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from compress.core.errors import Diverged, InputError
from compress.testing.tasks import check_task
from evaluators.datasets.batch import Batch
from evaluators.tasks.detection import Detection, DetectionConfig
from evaluators.tasks.evaluation import evaluate

CLASSES, SIDE = 4, 48
Each = list[dict[str, Tensor]]
"""A dictionary for every image."""


def task(**options: Any) -> Detection:
    return DetectionConfig(**options).bind(CLASSES, (3, SIDE, SIDE))


def boxes(count: int, generator: torch.Generator) -> Tensor:
    corners = torch.rand(count, 2, generator=generator) * (SIDE - 24)
    return torch.cat([corners, corners + 6 + torch.rand(count, 2, generator=generator) * 18], 1)


def batch(count: int = 6) -> Batch:
    """Images with 0 to 5 boxes of classes 1 to 3."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, SIDE, SIDE, generator=generator) for _ in range(count)]
    targets = [
        {"boxes": boxes(each, generator), "labels": torch.randint(1, CLASSES, (each,), generator=generator)}
        for each in [(3 * n) % 6 for n in range(count)]
    ]
    return Batch(images, targets)


def findings(given: Batch) -> list[dict[str, Tensor]]:
    """Boxes near those that are wanted, some of them twice or with another class, and some anywhere."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for target in given.targets:
        wanted = target["boxes"].repeat(2, 1)
        near = wanted + 2.5 * torch.randn(wanted.shape, generator=generator)
        others = boxes(3, generator)
        labels = torch.cat([target["labels"].repeat(2), torch.randint(1, CLASSES, (3,), generator=generator)])
        labels = labels.where(torch.rand(len(labels), generator=generator) > 0.2, 1)
        scores = torch.rand(len(labels), generator=generator)
        found.append({"boxes": torch.cat([near, others]), "labels": labels, "scores": scores})
    return found


def average_precision(found: Each, targets: Each, label: int, iou: float) -> float:
    """Return one class's area under precision over recall, precision taken at 101 recalls (COCO's definition)."""
    hits = []
    wanted = sum(int((target["labels"] == label).sum()) for target in targets)
    for one, target in zip(found, targets, strict=True):
        mine = one["labels"] == label
        truths = target["boxes"][target["labels"] == label]
        free = torch.ones(len(truths), dtype=torch.bool)
        scored = zip(one["scores"][mine].tolist(), one["boxes"][mine], strict=True)
        for score, box in sorted(scored, key=lambda x: -x[0]):
            overlaps = box_iou(box[None], truths)[0].where(free, -1.0) if len(truths) else torch.empty(0)
            hit = len(truths) > 0 and float(overlaps.max()) >= iou
            if hit:
                free[overlaps.argmax()] = False
            hits.append((score, hit))
    right = torch.tensor([hit for _, hit in sorted(hits, key=lambda x: -x[0])]).double().cumsum(0)
    recall, precision = right / wanted, right / torch.arange(1, len(right) + 1)
    at = [precision[recall >= level / 100] for level in range(101)]
    return sum(float(each.max()) if len(each) else 0.0 for each in at) / 101


def test_metrics_are_torchmetrics_and_a_direct_computation() -> None:
    from torchmetrics.detection import MeanAveragePrecision

    given, meter, theirs = batch(), task().meter(), MeanAveragePrecision()
    found = findings(given)
    for start, stop in ((0, 2), (2, 6)):
        meter.update(found[start:stop], given.part(start, stop))
    figures = meter.compute()
    theirs.update(found, given.targets)
    expected = theirs.compute()
    for name, key in (("map", "map"), ("map50", "map_50"), ("map75", "map_75")):
        assert figures[name] == pytest.approx(100 * float(expected[key]), abs=1e-4)
    assert figures["loss"] is None

    def mean(*ious: float) -> float:
        each = [average_precision(found, given.targets, label, iou) for iou in ious for label in range(1, CLASSES)]
        return 100 * sum(each) / len(each)

    assert 20 < mean(0.5) < 80
    assert figures["map50"] == pytest.approx(mean(0.5), abs=1e-3)
    assert figures["map75"] == pytest.approx(mean(0.75), abs=1e-3)
    assert figures["map"] == pytest.approx(mean(*(0.5 + 0.05 * n for n in range(10))), abs=1e-3)


def test_crowds_are_found_by_any_number_of_boxes_and_not_learnt() -> None:
    given = batch(2)
    crowd = {"boxes": torch.tensor([[0.0, 0, 40, 40], [41, 41, 47, 47]]), "labels": torch.tensor([1, 2])}
    crowd["iscrowd"] = torch.tensor([1, 0])
    given = Batch(given.inputs, [crowd, given.targets[0]])
    found = {
        "boxes": torch.tensor([[1.0, 1, 20, 20], [20, 20, 39, 39], [41, 41, 47, 47]]),
        "labels": torch.tensor([1, 1, 2]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    nothing = {name: value[:0] for name, value in found.items()}
    meter = task().meter()
    meter.update([found, nothing], given)
    assert meter.compute()["map"] == pytest.approx(100)
    seen = []

    class Looks(nn.Module):
        def forward(self, images: Any, targets: Any = None) -> Any:
            seen.extend(targets)
            return {"loss": torch.ones(())}

    task().forward(Looks().train(), given)
    assert seen[0]["boxes"].tolist() == [[41, 41, 47, 47]] and seen[0]["labels"].tolist() == [2]


class Finder(nn.Module):
    """The least that is a detector in torchvision's convention: finds what it is told, moved by a weight."""

    def __init__(self, found: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.found, self.shift = found, nn.Parameter(torch.zeros(()))

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training:
            assert targets is not None and len(targets) == len(images)
            return {"box": (self.shift - 1).square(), "class": self.shift.exp()}
        first = sum(int(image.sum() * 1000) for image in images[:1])
        start = next(n for n, image in enumerate(batch().inputs) if int(image.sum() * 1000) == first)
        return self.found[start : start + len(images)]


def test_is_what_training_evaluation_and_reports_rely_on() -> None:
    given = batch()
    model = Finder(findings(given))
    check_task(task(), given, lambda part: task().forward(model.train(torch.is_grad_enabled()), part))


def test_a_model_gives_its_losses_in_training_and_they_are_weighed() -> None:
    given, model = batch(), Finder([])
    losses = task().forward(model.train(), given)
    assert task().loss(losses, given).item() == pytest.approx(2.0)
    assert task(loss_weights={"box": 3.0}).loss(losses, given).item() == pytest.approx(4.0)
    with pytest.raises(InputError, match=r"task.loss_weights.boxes: the model has no such loss; allowed: box, class"):
        task(loss_weights={"boxes": 2}).loss(losses, given)
    model.eval()
    with task().losing(model), torch.enable_grad():
        assert set(task().forward(model, given)) == {"box", "class"}
    assert not model.training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": torch.tensor([4, 1, 1])}, "a box has the class 4; allowed: 1 to 3"),
        ({"labels": torch.tensor([2, 0, 1])}, "a box has the class 0; allowed: 1 to 3"),
    ],
)
def test_refuses_classes_that_the_head_lacks_in_training_and_evaluation(change: Any, words: str) -> None:
    given = batch()
    targets = [given.targets[1] | change if n == 1 else target for n, target in enumerate(given.targets)]
    wrong = Batch(given.inputs, targets)
    with pytest.raises(InputError, match=words):
        task().forward(Finder([]).train(), wrong)
    with pytest.raises(InputError, match=words):
        task().meter().update(findings(given), wrong)


def test_refuses_losses_that_nothing_is_learned_from() -> None:
    class Detached(nn.Module):
        def __init__(self, used: bool) -> None:
            super().__init__()
            self.layer, self.used = nn.Linear(1, 1), used

        def forward(self, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
            return {"all": self.layer(torch.ones(1)) if self.used else torch.ones(1)}

    task().check_trainable(Detached(used=True))
    with pytest.raises(InputError, match="its loss in training has no gradient"):
        task().check_trainable(Detached(used=False))


def test_refuses_models_without_losses_without_targets_and_with_other_outputs() -> None:
    given = batch()
    logits = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).train()
    with pytest.raises(InputError, match="in training it has to take images and targets"):
        task().forward(logits, given)
    with pytest.raises(InputError, match="in training it returns a list; task detection needs a dictionary of losses"):
        task().loss(findings(given), given)
    with pytest.raises(InputError, match=r"returned a tensor \(6, 4\) for 6 images"):
        task().meter().update(torch.zeros(6, 4), given)
    damaged = findings(given)
    damaged[2]["boxes"][0] = torch.nan
    with pytest.raises(Diverged, match="NaN"):
        task().meter().update(damaged, given)
    with pytest.raises(InputError, match="no image that the model is judged by has a box"):
        meter = task().meter()
        meter.update(findings(given)[:1], given.part(0, 1))
        meter.compute()
    with pytest.raises(InputError, match="no tensor"):
        task().tensor(findings(given))


def test_evaluation_says_the_same_however_images_are_put_into_batches() -> None:
    given = batch()

    class Loader:
        batch_size, num_samples = 4, 6

        def __len__(self) -> int:
            return 2

        def batches(self) -> Any:
            return given.split(4)

    figures = [evaluate(Finder(findings(given)), Loader(), task()) for _ in range(2)]  # type: ignore[arg-type]
    assert figures[0] == figures[1] and 10 < float(figures[0]["map"] or 0) < 90
