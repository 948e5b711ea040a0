"""What a task's meter gives is numbers by the task's names, or a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.core.errors import CompressError
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from evaluators.tasks.classification import Classification
from evaluators.tasks.evaluation import evaluate, try_meter

DATA = DigitsConfig(name="digits", image_size=8, limit_train=8, limit_test=8).load(DEFAULT, None)


@dataclass(frozen=True)
class Theirs(Classification):
    found: Any = None

    def meter(self) -> Any:
        class Meter:
            update = staticmethod(lambda outputs, batch: None)
            compute = staticmethod(lambda: self.found)

        return Meter()


def of(found: Any) -> Theirs:
    return Theirs(10, (1, 8, 8), DEFAULT, found=found)


MODEL = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
MODEL(next(iter(DATA.test.batches())).inputs)  # type: ignore[union-attr]


def test_scalars_become_floats_and_what_cannot_be_told_stays_none() -> None:
    assert DATA.test is not None
    task = of({"top1": np.float32(50), "top5": None, "loss": torch.tensor(0.5)})
    found = evaluate(MODEL, DATA.test, task)
    assert found == {"top1": 50.0, "top5": None, "loss": 0.5} and type(found["top1"]) is float
    try_meter(MODEL, DATA.test, task)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "its meter gives None; allowed: a mapping"),
        ({"top5": 1.0}, "its meter gives no top1; what cannot be told is None"),
        ({"top1": "a", "top5": 1.0, "loss": 1.0}, "its meter gives top1 = 'a'; allowed: a number"),
        ({"top1": torch.ones(2), "top5": 1.0, "loss": 1.0}, "its meter gives top1 = tensor"),
    ],
)
def test_what_is_no_figure_is_told_before_any_training(found: Any, says: str) -> None:
    assert DATA.test is not None
    for tried in (try_meter, evaluate):
        with pytest.raises(CompressError, match=f"^task classification: {says}"):
            tried(MODEL, DATA.test, of(found))
