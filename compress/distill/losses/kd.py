"""Logit distillation: the student imitates the teacher's softened class probabilities."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from compress.distill.losses import LossConfig, losses


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(softmax(teacher / T) ‖ softmax(student / T)), averaged over the batch, and over pixels.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", section 2; the factor T² keeps the
    gradient's size independent of the temperature. Logits are (batch, classes), or (batch, classes, height, width)
    where every pixel has a class; the result is a scalar.
    """
    soft_student = F.log_softmax(student / temperature, dim=1)
    soft_teacher = F.log_softmax(teacher / temperature, dim=1)
    total = F.kl_div(soft_student, soft_teacher, reduction="sum", log_target=True)
    return total / (student.numel() // student.shape[1]) * temperature**2


@losses.register("kd")
class KdConfig(LossConfig):
    """Hinton's logit distillation: weight · T² · KL(teacher ‖ student) + (1 - weight) · loss on the labels."""

    compares = "scores"
    loss: Literal["kd"] = Field("kd", description="logit distillation of Hinton et al.")
    temperature: float = Field(4.0, gt=0, description="softens both models' probabilities; 1 leaves them as they are")
    weight: float = Field(0.9, ge=0, le=1, description="share of the teacher in the loss; the labels get the rest")

    @property
    def label_share(self) -> float:
        """What `weight` leaves."""
        return 1 - self.weight

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return weight · kd_loss."""
        return self.weight * kd_loss(student, teacher, self.temperature)
