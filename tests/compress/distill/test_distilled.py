"""Learning from a teacher as a training step, however a recipe asks for it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tiny_training import equal, tiny_data, tiny_model
from torch import nn

from compress.core.errors import InputError
from compress.distill.distilled import DistilledConfig
from compress.distill.finetune import FinetuneConfig
from compress.runs.recipe import load_recipe
from compress.training.config import TrainConfig
from compress.training.fit import fit
from compress.training.supervised import SupervisedConfig

KD = {"loss": "kd", "temperature": 2.0}


def recovered(config: TrainConfig, teacher: nn.Module | None = None) -> nn.Module:
    model = tiny_model()
    fit(model, tiny_data(), config, teacher=teacher)
    return model


def test_the_section_distill_is_short_for_the_step() -> None:
    teacher, untouched = tiny_model(), tiny_model()
    nn.init.zeros_(teacher[-1].weight)
    nn.init.zeros_(untouched[-1].weight)
    short = FinetuneConfig(epochs=1, distill=KD)
    long = FinetuneConfig(epochs=1, step={"name": "distilled", "loss": KD})
    assert short.needs_teacher
    assert long.needs_teacher
    assert equal(recovered(short, teacher), recovered(long, teacher))
    assert equal(teacher, untouched)
    assert not equal(recovered(short, teacher), recovered(FinetuneConfig(epochs=1)))


def test_the_step_is_supervised_where_nothing_is_said() -> None:
    assert TrainConfig().step_config == FinetuneConfig().step_config == SupervisedConfig()
    assert FinetuneConfig(step={"name": "distilled"}).step_config == DistilledConfig()
    with pytest.raises(ValidationError, match="distill adds to step supervised; got step distilled"):
        FinetuneConfig(distill=KD, step={"name": "distilled"})


def test_a_step_that_needs_a_teacher_is_refused_where_there_is_none() -> None:
    with pytest.raises(InputError, match=r"train\.step: there is no other model yet.*got distilled"):
        load_recipe("dimap_swin.yaml", {"train.step": {"name": "distilled"}})
    search = {"search.evaluator.train.step": {"name": "distilled"}}
    with pytest.raises(InputError, match=r"search\.evaluator\.train\.step: there is no other model yet"):
        load_recipe("search_digits_nasnet_rl.yaml", search)
    with pytest.raises(InputError, match="step distilled needs a teacher"):
        recovered(FinetuneConfig(epochs=1, distill=KD))
