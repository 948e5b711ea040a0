"""How a compressed model recovers, and how any model learns from teachers: the sections `finetune` and `distill`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from pydantic import Field, model_validator

from compress.core.errors import InputError
from compress.distill.distilled import DistilledConfig
from compress.distill.losses import LossSection
from compress.distill.losses.kd import KdConfig
from compress.distill.teachers import Teachers
from compress.training.config import FitConfig, TrainConfig
from compress.training.step import StepConfig
from compress.training.supervised import SupervisedConfig


class FinetuneConfig(TrainConfig):
    """How a compressed model recovers: training settings with a lower learning rate, and a teacher if asked."""

    has_teacher = True

    epochs: int = Field(5, ge=0, description="passes over the training data")
    lr: float = Field(2e-4, gt=0, description="learning rate after warm-up")
    warmup_epochs: float | None = Field(
        None, ge=0, description="epochs of linear warm-up; null is 5 % of the epochs, after prune.compensate 25 %"
    )
    distill: LossSection | None = Field(
        None, description="learn from teachers as well as from the labels: by one loss, or by a list that is added up"
    )
    teachers: Teachers = Field({}, description="distill: teachers by name; none: the dense model")

    @model_validator(mode="after")
    def _one_step(self) -> Self:
        if self.distill is not None and not isinstance(self.step, SupervisedConfig):
            raise ValueError(f"distill adds to step supervised; got step {self.step.name}; leave out one of them")
        if self.teachers and self.distill is None:
            raise ValueError("teachers: nothing is learnt from them without distill, such as distill: {loss: kd}")
        return self

    @property
    def step_config(self) -> StepConfig:
        """What one update computes."""
        return self.step if self.distill is None else DistilledConfig(loss=self.distill, teachers=self.teachers)


class DistillStageConfig(FitConfig):
    """How the model learns from teachers: training settings, losses and teachers."""

    has_teacher = True

    loss: LossSection = Field(KdConfig(), description="how what teachers give joins the loss; a list is added up")
    teachers: Teachers = Field({}, description="teachers by name; none: the dense model, before it was compressed")

    @property
    def step_config(self) -> StepConfig:
        """What one update computes."""
        return DistilledConfig(loss=self.loss, teachers=self.teachers)


@contextmanager
def named_after(section: str, config: FitConfig | None) -> Iterator[None]:
    """Put the recipe's keys before what is wrong with the losses, the teachers or the step of a training.

    Args:
        section: of the recipe.
        config: what it holds.
    """
    try:
        yield
    except InputError as error:
        keys = {"loss": "step.loss", "teachers": "step.teachers"}
        if isinstance(config, DistillStageConfig):
            keys = {"loss": "loss", "teachers": "teachers"}
        elif isinstance(config, FinetuneConfig) and config.distill is not None:
            keys = {"loss": "distill", "teachers": "teachers"}
        raise InputError(*(_under(section, keys, each) for each in error.problems)) from error


def _under(section: str, keys: Mapping[str, str], problem: str) -> str:
    key, colon, rest = problem.partition(": ")
    first, _, others = key.partition(".")
    if colon and first in keys:
        return ".".join(filter(None, (section, keys[first], others))) + f": {rest}"
    if colon and key.startswith("step "):
        return f"{section}.step: {key.removeprefix('step ')}: {rest}"
    return problem
