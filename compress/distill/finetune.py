"""How a compressed model recovers, and how any model learns from teachers: the sections `finetune` and `distill`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

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
