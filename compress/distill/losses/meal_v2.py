"""MEAL V2: the student learns the teachers' mean probabilities, without labels, beside a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.special import entr

from compress.distill.layers import Seen
from compress.distill.losses import DistillLoss, LossConfig, Sides, averaged, guidances, losses
from evaluators.datasets.batch import Batch

LEAST_UNITS = 8
"""Of a hidden layer of the discriminator: by the published rule ten classes would leave one."""

Mode = Literal["off", "repo", "adversarial"]


def cross_entropy(student: Tensor, probabilities: Tensor) -> Tensor:
    """Return the mean over the batch of -Σ p log softmax(student), a scalar; both are (N, classes)."""
    return -(probabilities * F.log_softmax(student, 1)).sum(1).mean()


def discriminator(classes: int) -> nn.Sequential:
    """Return what tells a student's logits (N, classes) from a teacher's: two scores, each behind a ReLU as published.

    Layers of classes / 8 and classes / 64 units, rounded down, and at least `LEAST_UNITS`.
    """
    first = max(LEAST_UNITS, classes // 8)
    widths = [classes, first, max(LEAST_UNITS, first // 8), 2]
    layers = [(nn.Linear(wide, narrow), nn.ReLU()) for wide, narrow in pairwise(widths)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


@losses.register("meal_v2")
class MealV2Config(LossConfig):
    """The cross entropy with the teachers' mean probabilities, plus the discriminator's; no label is read.

    Shen and Savvides, "MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks", 2020;
    published with weight_decay: 0.
    """

    compares = "scores of samples"
    loss: Literal["meal_v2"] = Field("meal_v2", description="mean probabilities of several teachers, no labels")
    discriminator: Mode = Field(
        "repo",
        description="repo, the authors' code: student and discriminator lower its loss together; adversarial: the "
        "student raises it; off",
    )

    @property
    def label_share(self) -> float:
        """Nothing."""
        return 0.0

    def make(self, sides: Sides) -> DistillLoss:
        """Return the term, with the discriminator if there is one."""
        return MealV2Loss(self, sides)


class MealV2Loss(DistillLoss):
    """The term of `MealV2Config`; the discriminator trains in the run's optimiser, by its learning rate and decay."""

    def __init__(self, config: MealV2Config, sides: Sides) -> None:
        super().__init__()
        self.task, self.shares = sides.task, sides.shares
        self.adversarial = config.discriminator == "adversarial"
        self.discriminator = None if config.discriminator == "off" else discriminator(sides.task.num_outputs)

    def forward(self, student: Seen, teachers: Mapping[str, Seen], batch: Batch, update: int) -> Tensor:
        """Return the cross entropy with the teachers' mean probabilities, plus the discriminator's loss."""
        logits = guidances(self.task, student, teachers)
        mean = averaged({name: each.softmax(1) for name, each in logits.items()}, self.shares)
        loss = cross_entropy(student.tensor, mean)
        self.parts = {"divergence": loss.detach() - entr(mean).sum(1).mean()}
        if self.discriminator is not None:
            recognised = self.recognised(student.tensor, averaged(logits, self.shares))
            self.parts |= {"discriminator": recognised.detach()}
            loss = loss + recognised
        return loss

    def recognised(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the discriminator's loss on logits (N, classes) of both: a scalar, at least ln 2 / 2 by its ReLU."""
        assert self.discriminator is not None
        ours = _Reversed.apply(student) if self.adversarial else student
        scores = self.discriminator(torch.cat([ours, teacher]))
        wanted = torch.eye(2, device=scores.device, dtype=scores.dtype).repeat_interleave(len(student), 0)
        return F.binary_cross_entropy_with_logits(scores, wanted)


class _Reversed(torch.autograd.Function):
    """Gives what it gets, and the gradient with the other sign: who is before it raises what lies behind it lowers."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]
