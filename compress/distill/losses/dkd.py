"""Decoupled logit distillation: what the teacher says of the right class and of the others counts separately."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from compress.core.errors import InputError
from compress.distill.layers import Seen
from compress.distill.losses import DistillLoss, LossConfig, Sides, averaged, guidances, losses
from evaluators.datasets.batch import Batch


def decoupled(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the two parts of logit distillation for every sample, each (N,) and times temperature².

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, section 3: with p_t the teacher's softened probability
    of the right class, T² · KL(teacher ‖ student) is the first part plus (1 - p_t) times the second.

    Args:
        student: logits (N, classes).
        teacher: the same.
        targets: the right classes, int64 (N,).
        temperature: softens both models' probabilities.

    Returns:
        the divergence between "right class" and "any other", and that between the other classes among themselves.
    """
    ours, theirs = student / temperature, teacher / temperature
    (ours_right, ours_others), (theirs_right, theirs_others) = (_parted(each, targets) for each in (ours, theirs))
    return (
        temperature**2 * _divergence(ours_right, theirs_right),
        temperature**2 * _divergence(ours_others, theirs_others),
    )


def _parted(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, 2) of "right class" against "any other", and those of the other classes, (N, classes - 1)."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    right = logits.gather(1, targets[:, None])
    others = logits.gather(1, places + (places >= targets[:, None]))
    return torch.cat([right, others.logsumexp(1, keepdim=True)], dim=1), others


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    logs = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
    return F.kl_div(*logs, reduction="none", log_target=True).sum(1)


@losses.register("dkd")
class DkdConfig(LossConfig):
    """Decoupled distillation: alpha · (right class or not) + beta · (among the others), added to the labels' loss."""

    compares = "scores of samples"
    loss: Literal["dkd"] = Field("dkd", description="decoupled logit distillation of Zhao et al.")
    alpha: float = Field(1.0, ge=0, description="weight of what the teacher says of the right class against the others")
    beta: float = Field(
        8.0, ge=0, description="weight of what it says of the others among themselves; published: 0.5-8"
    )
    temperature: float = Field(4.0, gt=0, description="softens both models' probabilities; 1 leaves them as they are")
    warmup_epochs: int = Field(
        0, ge=0, description="epochs in which the term grows to its weight; published: 20 of 240"
    )

    def make(self, sides: Sides) -> DistillLoss:
        """Return the term; InputError where there is no other class than the right one."""
        if sides.task.num_outputs == 1:
            raise InputError("dkd parts the right class from the others; the model has one output")
        return DkdLoss(self, sides)


class DkdLoss(DistillLoss):
    """The term of `DkdConfig`; several teachers are averaged by their weights."""

    def __init__(self, config: DkdConfig, sides: Sides) -> None:
        super().__init__()
        self.config, self.task, self.shares = config, sides.task, sides.shares
        self.updates_per_epoch = sides.updates_per_epoch

    def forward(self, student: Seen, teachers: Mapping[str, Seen], batch: Batch, update: int) -> Tensor:
        """Return the term, which grows by the epoch while it warms up.

        Raises:
            InputError: the targets are no class numbers, as those of mixed images, or a teacher has other classes.
        """
        targets = batch.targets
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.ndim != 1:
            raise InputError(
                "dkd needs the right class of every image, and targets here are none, as with mixup and "
                "cutmix; leave them out, or take kd"
            )
        found = {
            name: decoupled(student.tensor, guidance, targets, self.config.temperature)
            for name, guidance in guidances(self.task, student, teachers).items()
        }
        right, others = (
            averaged({name: each[part].mean() for name, each in found.items()}, self.shares) for part in (0, 1)
        )
        self.parts = {"right": right.detach(), "others": others.detach()}
        return self.weight(update) * (self.config.alpha * right + self.config.beta * others)

    def weight(self, update: int) -> float:
        """Return what the term is multiplied by: in epoch n of the warm-up (from 1), n of its length."""
        epoch = update // self.updates_per_epoch + 1
        return min(1.0, epoch / self.config.warmup_epochs) if self.config.warmup_epochs else 1.0
