"""Cosine: the student's embeddings come to point where the teacher's do."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from compress.distill.losses import LossConfig, losses


@losses.register("cosine")
class CosineConfig(LossConfig):
    """Directions of outputs; weight · mean (1 - cosine of student and teacher) + (1 - weight) · loss on the labels.

    The cosine is along dimension 1: of embeddings (N, numbers) one for each sample, of maps (N, C, H, W) one for each
    position. Lengths, which retrieval by cosine does not see, are left to the student.
    """

    loss: Literal["cosine"] = Field("cosine", description="directions of embeddings, or of maps position by position")
    weight: float = Field(1.0, ge=0, le=1, description="share of the teacher in the loss; the labels get the rest")

    @property
    def label_share(self) -> float:
        """What the teacher leaves."""
        return 1 - self.weight

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return weight · mean (1 - cosine)."""
        return self.weight * (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
