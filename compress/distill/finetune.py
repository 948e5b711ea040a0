"""How a compressed model recovers: the recipe's section `finetune`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from compress.distill.distilled import DistilledConfig
from compress.distill.losses import DistillConfig
from compress.training.config import TrainConfig
from compress.training.step import StepConfig
from compress.training.supervised import SupervisedConfig


class FinetuneConfig(TrainConfig):
    """How a compressed model recovers: training settings with a lower learning rate, and a teacher if asked."""

    has_teacher = True

    epochs: int = Field(5, ge=0, description="passes over the training data")
    lr: float = Field(2e-4, gt=0, description="learning rate after warm-up")
    distill: DistillConfig | None = Field(None, description="learn from the dense model as well as from the labels")

    @model_validator(mode="after")
    def _one_step(self) -> Self:
        if self.distill is not None and not isinstance(self.step, SupervisedConfig):
            raise ValueError(f"distill adds to step supervised; got step {self.step.name}; leave out one of them")
        return self

    @property
    def step_config(self) -> StepConfig:
        """What one update computes."""
        return self.step if self.distill is None else DistilledConfig(loss=self.distill)
