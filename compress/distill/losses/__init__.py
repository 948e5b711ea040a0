"""Losses that let a student learn from a teacher: one file per method, its config class next to its code.

A new loss is one new file in this package: a `LossConfig` subclass with a `loss: Literal["name"]` field and a
`combine` method, entered with `@losses.register("name")`. A third party's package does the same in a module of its own.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from compress.core.config import Config
from compress.core.registry import Registry
from compress.core.sections import OneOf


class LossConfig(Config):
    """The base of every distillation loss: its settings, and how it joins the loss on the labels."""

    loss: str

    def combine(self, student: Tensor, teacher: Tensor, label_loss: Tensor) -> Tensor:
        """Return the training loss, a scalar.

        Args:
            student: the task's tensor of outputs, such as logits (batch, classes), with gradients.
            teacher: that of the same inputs, without gradients.
            label_loss: the student's loss on the labels (smoothed or mixed as the recipe says), a scalar.
        """
        raise NotImplementedError


losses: Registry[type[LossConfig]] = Registry("loss", home="compress.distill.losses", base=LossConfig)

DistillConfig = Annotated[LossConfig, OneOf(losses, "loss", default="kd")]
"""A section `distill` of a recipe: the config of one of the losses, told apart by `loss`."""
