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
from evaluators.datasets.batch import Batch


class Distilled(Supervised):
    """Supervised training whose loss a teacher's outputs for the same inputs join."""

    def __init__(self, context: StepContext, distill: LossConfig) -> None:
        super().__init__(context)
        if context.teacher is None:
            raise InputError("step distilled needs a teacher, the model before compression, and there is none")
        self.teacher, self.distill = Teacher(context.teacher), distill

    def prepare(self, model: nn.Module, engine: Engine) -> None:
        """Move the teacher to the student's device as well."""
        super().prepare(model, engine)
        self.teacher.prepare(engine)

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the loss on the labels and the teacher's outputs.

        Raises:
            InputError: teacher and model give tensors of different shapes, or what supervised training raises.
        """
        batch = self.task.mixed(batch)
        guidance = self.task.tensor(self.task.forward(self.teacher, batch))  # first: the model may change the inputs
        outputs, label_loss = self.learnt(model, batch)
        student = self.task.tensor(outputs)
        self.task.check_alike(student, guidance)
        return self.distill.combine(student, guidance.to(student.dtype), label_loss)


@steps.register("distilled")
class DistilledConfig(StepConfig):
    """Learn from the model before compression as well as from the labels."""

    needs_teacher: ClassVar[bool] = True

    name: Literal["distilled"] = Field("distilled", description="learn from a teacher and the labels")
    loss: DistillConfig = Field(KdConfig(), description="how the teacher's outputs join the loss on the labels")

    def make(self, context: StepContext) -> Distilled:
        """Return the step; InputError where there is no teacher."""
        return Distilled(context, self.loss)
