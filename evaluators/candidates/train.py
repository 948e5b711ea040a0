"""Candidates trained for a short while and judged on held-out training images."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import nn

from compress.core.errors import Diverged, InputError
from compress.core.progress import hushed
from compress.training.config import TrainConfig
from compress.training.fit import fit
from compress.training.position import FitResult
from evaluators.candidates.cache import locked
from evaluators.candidates.evaluator import (
    Evaluator,
    EvaluatorBase,
    EvaluatorContext,
    Metrics,
    Report,
    Stopped,
    evaluators,
)
from evaluators.candidates.networks import (
    accuracy,
    accuracy_names,
    build,
    candidate_data,
    costs,
    data_for,
    diverged,
    fingerprint,
    names_for,
    save_weights,
    told,
)
from evaluators.candidates.teacher import GivenModel
from evaluators.datasets import Data
from evaluators.tasks import Task, TaskConfig
from spaces.architecture import Architecture
from spaces.zoo import ModelConfig


class CandidateTrainConfig(TrainConfig):
    """Training settings with few epochs."""

    epochs: int = Field(5, ge=1, description="passes over the training data, without the part held out")


class StudentTrainConfig(CandidateTrainConfig):
    """Training settings of candidates that may learn from the recipe's model."""

    has_teacher = True


@evaluators.register("train")
class TrainEvaluatorConfig(EvaluatorBase):
    """Train each candidate for a few epochs; its accuracy on held-out training images is what it is worth.

    A candidate whose training diverges counts as the worst: the search goes on and learns from it. The test images
    are never looked at.
    """

    kind: Literal["train"] = "train"
    train: StudentTrainConfig = Field(default_factory=StudentTrainConfig, description="how a candidate is trained")
    teacher_train: CandidateTrainConfig | None = Field(
        None,
        description="how the recipe's model is trained before candidates learn from it (step distilled); null: it "
        "comes with weights",
    )
    holdout: float = Field(0.2, gt=0, lt=1, description="share of the training images that candidates are judged on")
    keep_weights: bool = Field(False, description="keep each candidate's trained weights, to build the winner with")

    @property
    def reports(self) -> bool:
        """Whether candidates are judged while they train."""
        return bool(self.train.evaluate_every)

    def metrics_for(self, task: TaskConfig, sections: Mapping[str, Any]) -> Collection[str]:
        """Return the task's, params, macs."""
        return names_for(task)

    def make(self, context: EvaluatorContext) -> Evaluator:
        """Return the evaluator; raises InputError where there are no training images."""
        return TrainEvaluator(self, context)


class TrainEvaluator(Evaluator):
    """Trains candidates.

    The same architecture, seed and settings give the same metrics, whichever trial or process asks. A training that
    was killed goes on from its last checkpoint when the candidate is asked for again.
    """

    def __init__(self, config: TrainEvaluatorConfig, context: EvaluatorContext) -> None:
        self.config, self.context = config, context
        self.data = candidate_data(context, config.holdout, config.kind)
        self._given = self._given_model()

    def _given_model(self) -> GivenModel | None:
        """Return the model that candidates learn from or are compared with; None where nobody asks for one."""
        context, config = self.context, self.config
        model = context.model or getattr(context.space.config, "model", None)
        if config.teacher_train is None and not config.train.needs_teacher:
            return None
        if not isinstance(model, ModelConfig):
            raise InputError("candidates learn from the recipe's model; name it in model")
        folder = context.directory
        return GivenModel(model, config.teacher_train, self.data, context.device, context.seed, folder)

    @property
    def has_given(self) -> bool:
        """Whether candidates have a teacher."""
        return self._given is not None

    def given(self) -> Metrics:
        """Return what the teacher is worth on the held-out images."""
        assert self._given is not None
        return self._given.metrics()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's, params, macs."""
        return accuracy_names(self.data)

    def evaluate(self, arch: Architecture, wanted: Collection[str], seed: int, report: Report | None = None) -> Metrics:
        """Train `arch` from `seed` and return its metrics; `report` hears of every epoch."""
        space, device = self.context.space, self.context.device
        arch = space.canonical(arch)
        data = data_for(space, arch, self.data)
        model = build(space, arch, data, seed)
        try:
            with hushed():
                known = self._train(model, data, arch, seed, _listener(data.task, wanted, report)).metrics
                found = accuracy(model, data, device) if known is None else told(known)
        except Diverged as error:
            found = diverged(data, error)
        else:
            if self.config.keep_weights:
                save_weights(model, self.weights_path(arch, seed), arch)
        return found | costs(space, arch, data)

    def weights_path(self, arch: Architecture, seed: int) -> Path:
        """Return where `keep_weights` puts the weights of `space.build(space.canonical(arch), ...)` after training."""
        return self.context.directory / f"{self._name(arch, seed)}.safetensors"

    def tidy(self) -> None:
        """Delete the checkpoints of trainings that were killed and not asked for again."""
        shutil.rmtree(self.context.directory / "training", ignore_errors=True)

    def _name(self, arch: Architecture, seed: int) -> str:
        settings = {"train": self.config.train.neutral(), "holdout": self.config.holdout, "seed": seed}
        if self._given is not None:
            settings["teacher"] = self._given.path.stem
        return fingerprint(self.context.space, arch, **settings)

    def _train(
        self, model: nn.Module, data: Data, arch: Architecture, seed: int, log: Callable[[dict[str, Any]], None] | None
    ) -> FitResult:
        folder = self.context.directory / "training" / self._name(arch, seed)
        teacher = self._given.module() if self._given is not None and self.config.train.needs_teacher else None
        device = self.context.device
        train = partial(fit, model, data, self.config.train, device=device, seed=seed, teacher=teacher, log=log)
        with locked(folder.with_suffix(".lock"), wait=False) as mine:
            if not mine:  # another worker trains the same candidate: both do, and only that one leaves checkpoints
                return train(label="candidate")
            try:
                found = train(label="candidate", checkpoint_dir=folder, resume=True)
            except (Stopped, Diverged):
                shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)
            return found


def _listener(task: Task, wanted: Collection[str], report: Report | None) -> Callable[[dict[str, Any]], None] | None:
    """Return what hands each epoch's first wanted metric on to the pruner, and stops the training where it says so."""
    if report is None:
        return None
    names = [metric.name for metric in task.metrics]
    key = next((name for name in wanted if name in names), task.main_metric.name)
    key = "test_loss" if key == "loss" else key  # beside the training's

    def log(event: dict[str, Any]) -> None:
        value = event.get(key)
        if value is not None and report(event["epoch"], value):
            raise Stopped(event["epoch"], value)

    return log
