"""Supervised training: the model learns from the labels."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field
from timm.data import Mixup
from torch import Tensor, nn

from compress.core.batch_norm import enough_values
from compress.core.errors import InputError
from compress.training.step import StepConfig, StepContext, TrainingStep, steps
from evaluators.datasets.loaders import Batch
from evaluators.tasks.accuracy import logits_of

# Of torchvision's training heads: Szegedy et al. 2015, section 5; Inception as torchvision's guide has it.
AUXILIARY_WEIGHTS = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}


class Supervised(TrainingStep):
    """Cross entropy on the labels, smoothed or mixed as the recipe says; auxiliary heads join with their weight.

    A model's auxiliary outputs join with its own `auxiliary_weight`, if it has that, and those of torchvision's
    GoogLeNet and Inception with the published weight.
    """

    def __init__(self, context: StepContext) -> None:
        super().__init__()
        config = context.config
        self.smoothing = config.label_smoothing
        self.mixing: Mixup | None = None
        if config.mixup or config.cutmix:
            classes = context.data.num_classes
            self.mixing = Mixup(config.mixup, config.cutmix, label_smoothing=self.smoothing, num_classes=classes)

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the loss on the labels of images (N, C, H, W).

        Raises:
            InputError: the model gives no logits, or its batch norms cannot learn from one image.
        """
        return self.learnt(model, *self.mixed(batch))[1]

    def mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images and targets: class numbers (N,), or shares of the classes (N, classes) where images are mixed.

        Mixup pairs an image with another: an odd one is left out, a single one is not mixed.
        """
        images, labels = batch
        if self.mixing is None or len(images) < 2:
            return images, labels
        even = len(images) // 2 * 2
        mixed: tuple[Tensor, Tensor] = self.mixing(images[:even].clone(), labels[:even])
        return mixed

    def learnt(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, classes) of `model` and its loss on `targets`, a scalar; it may change the images."""
        smoothing = 0.0 if targets.ndim == 2 else self.smoothing  # is in mixed targets already
        with enough_values():
            output: Any = model(images)
        logits = logits_of(output)
        if logits.ndim != 2:
            raise InputError(f"model: it returns {tuple(logits.shape)}; training needs logits (N, classes)")
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        weight = getattr(model, "auxiliary_weight", AUXILIARY_WEIGHTS.get(type(output).__name__, 0.0))
        for auxiliary in output[1:] if weight and not isinstance(output, Tensor) else ():
            loss = loss + weight * F.cross_entropy(auxiliary, targets, label_smoothing=smoothing)
        return logits, loss


@steps.register("supervised")
class SupervisedConfig(StepConfig):
    """Learn from the labels, with the section's smoothing and mixing."""

    name: Literal["supervised"] = Field("supervised", description="learn from the labels")

    def make(self, context: StepContext) -> Supervised:
        """Return the step."""
        return Supervised(context)
