"""Logit matching: the student's logits approach the teacher's, without a temperature."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from compress.distill.losses import LossConfig, losses


@losses.register("logits")
class LogitsConfig(LossConfig):
    """Mean squared distance of the logits; weight · mean (student - teacher)² + (1 - weight) · loss on the labels.

    Ba and Caruana, "Do Deep Nets Really Need to be Deep?", section 2.2; what the students of N2N learn by, with no
    labels.
    """

    loss: Literal["logits"] = Field("logits", description="squared distance of the logits")
    weight: float = Field(1.0, ge=0, le=1, description="share of the teacher in the loss; the labels get the rest")

    @property
    def label_share(self) -> float:
        """What the teacher leaves."""
        return 1 - self.weight

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return weight · mean (student - teacher)²."""
        return self.weight * F.mse_loss(student, teacher)
