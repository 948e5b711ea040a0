"""Supervised training: the model learns from the labels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.batch_norm import enough_values
from compress.training.step import StepConfig, StepContext, TrainingStep, steps
from evaluators.datasets.batch import Batch
from evaluators.tasks.task import check_learnable


class Supervised(TrainingStep):
    """The task's loss on the labels, smoothed or mixed as the recipe says."""

    def __init__(self, context: StepContext) -> None:
        """Raises InputError where the settings ask for what the task does not have."""
        super().__init__()
        self.task = context.data.task.learning(context.config)

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the loss on the labels.

        Raises:
            InputError: the model's outputs are not of the task, or its batch norms cannot learn from one image.
        """
        return self.learnt(model, self.task.mixed(batch))[1]

    def learnt(self, model: nn.Module, batch: Batch) -> tuple[Any, Tensor]:
        """Return what `model` gives for `batch`, and its loss, a scalar; it may change the inputs."""
        with enough_values():
            outputs = self.task.forward(model, batch)
        loss = self.task.loss(outputs, batch, model)
        if torch.is_grad_enabled():
            check_learnable(loss, model)
        return outputs, loss


@steps.register("supervised")
class SupervisedConfig(StepConfig):
    """Learn from the labels, with the section's smoothing and mixing."""

    name: Literal["supervised"] = Field("supervised", description="learn from the labels")

    def make(self, context: StepContext) -> Supervised:
        """Return the step."""
        return Supervised(context)
