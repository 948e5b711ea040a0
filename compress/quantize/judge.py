"""How good a file is, by the recipe's task, and how near to the float file it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.errors import InputError
from compress.export.onnx_model import OnnxModel
from evaluators.datasets import Loader
from evaluators.tasks import Task
from evaluators.tasks.evaluation import evaluate


@dataclass(frozen=True)
class Judgement:
    """The task's metrics over some images, and the outputs (N, ...) that they are of; None: no tensor stands for them.

    `scored` says whether these are scores of classes along dimension 1.
    """

    metrics: dict[str, float | None]
    outputs: Tensor | None
    scored: bool

    def agreement(self, other: Judgement) -> float | None:
        """Return the percentage of images, or of pixels, for which the same class wins; None without classes."""
        if not self.scored or self.outputs is None or other.outputs is None or self.outputs.shape[1] < 2:
            return None
        same = self.outputs.argmax(1) == other.outputs.argmax(1)
        return 100 * same.double().mean().item()

    def error(self, other: Judgement) -> float | None:
        """Return the mean square of the outputs' difference over that of the other's: a noise ratio, no accuracy."""
        if self.outputs is None or other.outputs is None:
            return None
        difference = (self.outputs.double() - other.outputs.double()).square().mean()
        return (difference / other.outputs.double().square().mean().clamp_min(1e-30)).item()


def judge(file: Path, images: Loader, task: Task) -> Judgement:
    """Return how good the ONNX file is on `images`.

    Raises:
        InputError: the file takes no images or does not give what the task needs, or the task's main metric says
            nothing of it, so that a loss could not be seen.
        Diverged: its outputs are not finite.
    """
    model, outputs = OnnxModel(file, task), []

    def noted(*inputs: Any, **named: Any) -> Any:
        given = model(*inputs, **named)
        if task.gives_tensor:
            outputs.append(task.tensor(given))
        return given

    metrics = evaluate(noted, images, task)
    if metrics.get(task.main_metric.name) is None:
        raise InputError(
            f"quantize: task {task.name} has no {task.main_metric.label} here, so what is lost cannot be judged; leave "
            "the section out"
        )
    return Judgement(metrics, torch.cat(outputs) if outputs else None, task.scored != "nothing")


def drop(task: Task, before: Judgement, after: Judgement) -> float:
    """Return by how much the main metric got worse, in its units; negative where it got better."""
    main = task.main_metric
    was, now = before.metrics[main.name], after.metrics[main.name]
    assert was is not None and now is not None  # `judge` refuses such
    return was - now if main.direction == "maximize" else now - was
