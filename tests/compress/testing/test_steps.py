"""The checks of training steps pass for ours, and fail for steps that do what they must not."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from compress.testing.steps import check_training_step
from compress.training.step import StepConfig, StepContext, TrainingStep, steps
from compress.training.supervised import Supervised


@pytest.mark.parametrize("name", steps.names())
def test_our_steps_keep_what_the_trainer_relies_on(name: str) -> None:
    check_training_step(steps.get(name)(name=name), transformer if name == "path_ensemble" else None)


def transformer() -> nn.Module:
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 4}
    return timm.create_model("vit_tiny_patch16_224", **options)


class Forgetful(Supervised):
    """Counts its updates, and does not say so."""

    count = 0

    def loss(self, model: nn.Module, batch: Any, update: int) -> Tensor:
        self.count += 1
        return super().loss(model, batch, update) * self.count


class Holding(Supervised):
    def prepare(self, model: nn.Module, engine: Any) -> None:
        super().prepare(model, engine)
        self.model = model


class Idle(Supervised):
    def __init__(self, context: StepContext) -> None:
        super().__init__(context)
        self.own = nn.Parameter(torch.ones(()))

    def loss(self, model: nn.Module, batch: Any, update: int) -> Tensor:
        with torch.no_grad():
            loss = super().loss(model.eval(), batch, update)
        return loss * self.own


class Spoiling(Supervised):
    def __init__(self, context: StepContext) -> None:
        super().__init__(context)
        self.teacher = [context.teacher]

    def loss(self, model: nn.Module, batch: Any, update: int) -> Tensor:
        return super().loss(self.teacher[0].train(), batch, update) + super().loss(model, batch, update)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Forgetful, "a resumed run ends with other weights"),
        (Holding, "the step has parameters of the model"),
        (Idle, "the model is as it was"),
        (Spoiling, "the teacher was changed"),
    ],
)
def test_a_step_that_does_what_it_must_not_is_found(kind: type[Supervised], words: str) -> None:
    class Config(StepConfig):
        name: str = "supervised"

        def make(self, context: StepContext) -> TrainingStep:
            return kind(context)

    with pytest.raises(AssertionError, match=words):
        check_training_step(Config())
