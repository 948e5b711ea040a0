"""Learning from a teacher's outputs as well as from the labels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.distill.losses import DistillConfig, LossConfig
from compress.distill.losses.kd import KdConfig
from compress.training.engine import Engine
from compress.training.step import StepConfig, StepContext, Teacher, steps
from compress.training.supervised import Supervised
from evaluators.datasets.loaders import Batch
from evaluators.tasks.accuracy import logits_of


class Distilled(Supervised):
    """Supervised training whose loss a teacher's logits on the same images join."""

    def __init__(self, context: StepContext, distill: LossConfig) -> None:
        super().__init__(context)
        if context.teacher is None:
            raise InputError("distill needs a teacher, and there is none")
        self.teacher, self.distill = Teacher(context.teacher), distill

    def prepare(self, model: nn.Module, engine: Engine) -> None:
        """Move the teacher to the student's device as well."""
        super().prepare(model, engine)
        self.teacher.prepare(engine)

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the loss on the labels and the teacher's logits.

        Raises:
            InputError: teacher and model give different classes, or what supervised training raises.
        """
        images, targets = self.mixed(batch)
        guidance = logits_of(self.teacher(images))  # before the model, which may change the images
        logits, label_loss = self.learnt(model, images, targets)
        if guidance.shape != logits.shape:
            raise InputError(f"the teacher gives {guidance.shape[1]} classes, the model {logits.shape[1]}")
        return self.distill.combine(logits, guidance.to(logits.dtype), label_loss)


@steps.register("distilled")
class DistilledConfig(StepConfig):
    """Learn from the model before compression as well as from the labels."""

    needs_teacher: ClassVar[bool] = True

    name: Literal["distilled"] = Field("distilled", description="learn from a teacher and the labels")
    loss: DistillConfig = Field(KdConfig(), description="how the teacher's outputs join the loss on the labels")

    def make(self, context: StepContext) -> Distilled:
        """Return the step; InputError where there is no teacher."""
        return Distilled(context, self.loss)
