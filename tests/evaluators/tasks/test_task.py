"""What the toolkit asks of a task is enough for one that gives no logits and has no classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.training.config import TrainConfig
from compress.training.fit import fit
from evaluators.datasets.batch import Batch
from evaluators.tasks import Meter, Metric, Task, TaskConfig
from evaluators.tasks.evaluation import evaluate
from evaluators.tasks.task import Shape

ROOT = Path(__file__).parents[3]


class LineConfig(TaskConfig):
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("mae", "minimize", "MAE", "Mean error"),
        Metric("loss", "minimize", "loss", "Loss"),
    )
    name: Literal["line"] = "line"

    def bind(self, num_outputs: int, input_size: Shape) -> Line:
        return Line(num_outputs, input_size, self)

    def outputs_of(self, outputs: Any) -> int | None:
        return 1


@dataclass(frozen=True)
class Line(Task):
    """A number for two inputs that are given by name; the model itself computes its loss in training."""

    config: TaskConfig = field(default_factory=LineConfig)

    def forward(self, model: Any, batch: Batch) -> Any:
        assert isinstance(batch.inputs, dict)
        return model(**batch.inputs, wanted=batch.targets if model.training else None)

    def loss(self, outputs: Any, batch: Batch, model: nn.Module | None = None) -> Tensor:
        return torch.stack(list(outputs.values())).sum()

    def tensor(self, outputs: Any) -> Tensor:
        return torch.as_tensor(outputs)

    def meter(self) -> Meter:
        return Errors()


class Errors(Meter):
    def __init__(self) -> None:
        self.errors: list[Tensor] = []

    def update(self, outputs: Any, batch: Batch) -> None:
        self.errors.append((outputs - batch.targets).abs())

    def compute(self) -> dict[str, float | None]:
        errors = torch.cat(self.errors)
        return {"mae": float(errors.mean()), "loss": float(errors.square().mean())}


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)

    def forward(self, x: Tensor, y: Tensor, wanted: Tensor | None = None) -> Any:
        found = self.line(torch.stack([x, y], 1))[:, 0]
        return found if wanted is None else {"fit": F.mse_loss(found, wanted)}


class Samples:
    batch_size, num_samples = 8, 32

    def __init__(self) -> None:
        x, y = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
        self.all = Batch({"x": x, "y": y}, 2 * x - y)

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return iter(list(self.batches())[start:])

    def batches(self) -> Iterator[Batch]:
        return self.all.split(8)


@dataclass
class Lines:
    train: Any
    test: Any
    task: Task


def test_a_model_with_named_inputs_and_a_loss_of_its_own_is_trained_and_the_smallest_error_is_kept() -> None:
    data: Any = Lines(Samples(), Samples(), LineConfig().bind(1, (2,)))
    model = Both()
    plain: dict[str, Any] = {"optimizer": "momentum", "momentum": 0, "weight_decay": 0, "schedule": "constant"}
    config = TrainConfig(epochs=4, lr=0.9, warmup_epochs=0, keep="best", **plain)
    result = fit(model, data, config)
    errors = [event["mae"] for event in result.history]
    assert min(errors) < max(errors) and result.best_epoch == 1 + errors.index(min(errors))
    assert evaluate(model, data.test, data.task)["mae"] == pytest.approx(min(errors))
    assert {"mae", "loss", "test_loss"} <= result.history[0].keys()


@pytest.mark.parametrize("key", ["label_smoothing", "mixup", "cutmix"])
def test_settings_that_a_task_has_no_use_for_are_refused(key: str) -> None:
    data: Any = Lines(Samples(), None, LineConfig().bind(1, (2,)))
    with pytest.raises(InputError, match=f"{key} is nothing that task line has"):
        fit(Both(), data, TrainConfig(epochs=1, **{key: 0.1}))


def lines_with(words: str, *places: str) -> list[str]:
    """Lines of files and folders, apart from tasks, in which one of the words occurs."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for place in places
        for path in sorted([ROOT / place, *(ROOT / place).rglob("*")])
        if path.suffix in (".py", ".j2") and "evaluators/tasks/" not in path.as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(words, line, re.IGNORECASE)
    ]


def test_only_tasks_know_of_classes_that_are_ranked() -> None:
    found = lines_with(r"top-?[15]\b|cross.?entropy|logits_of", "compress", "evaluators", "search", "spaces")
    published = "80.8 % top-1 on ImageNet"  # what a preset's paper reports, not what this toolkit measures
    of_logits = (
        "compress/distill/losses/meal_v2.py",  # a loss of classifiers' probabilities
        "spaces/leyolo/loss.py",  # a detector's own
    )
    assert [line for line in found if published not in line and not line.startswith(of_logits)] == []


def test_only_tasks_and_what_is_for_classifiers_alone_know_how_outputs_look() -> None:
    """Networks in spaces/ are classifiers by construction; their sources know what constructors call the number."""
    allowed = (
        "compress/bundle.py",  # reads the key of older bundles
        "compress/distill/losses/",  # kd is a loss of logits
        "evaluators/latency/table.py",  # the key of a file
    )
    rooms = ("compress", "search", "evaluators/candidates", "evaluators/latency")
    found = lines_with(
        r"num_classes|\([a-z]+, classes\)|[\"']logits[\"']", *rooms, "spaces/space.py", "spaces/supernet.py"
    )
    found += lines_with(r"num_classes|\bclasses\b|logits", "spaces/zoo.py", "spaces/shapes.py", "spaces/summary.py")
    assert [line for line in found if not line.startswith(allowed)] == []
