"""How long pruning is told to take: most of a pruning to a latency goes into what each choice loses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from compress.bundle import open_model
from compress.prune.kinds.structure import Structure
from compress.prune.seconds import pruning_seconds
from evaluators.datasets import Data
from spaces.zoo import ModelConfig

CIFAR = cast(Data, SimpleNamespace(train=SimpleNamespace(num_samples=20_000), test=SimpleNamespace(num_samples=5_000)))


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        ({"budget": {"macs": 0.5}, "compensate": False}, 20, 20),  # an evaluation alone
        ({"budget": {"macs": 0.5}}, 40, 60),
        ({"budget": {"latency": 0.5}}, 150, 250),
        ({"budgets": [{"latency": 0.667}, {"latency": 0.5}, {"latency": 0.333}]}, 300, 600),  # 440 s were measured
    ],
)
def test_what_is_measured_and_repaired_is_in_the_estimate(settings: dict[str, Any], least: float, most: float) -> None:
    model = open_model(ModelConfig(source="builtin", name="cifar_resnet56")).bundle.model
    config = Structure.model_validate({"kind": "structure", **settings})
    assert least <= pruning_seconds(model, config, CIFAR, evaluation=20.0) <= most


def test_without_data_the_time_of_measuring_is_left() -> None:
    model = open_model(ModelConfig(source="builtin", name="cifar_resnet20")).bundle.model
    assert (
        pruning_seconds(model, Structure.model_validate({"kind": "structure", **{"budget": {"macs": 0.5}}}), None, 0.0)
        == 0
    )
    assert (
        pruning_seconds(
            model, Structure.model_validate({"kind": "structure", **{"budget": {"latency": 0.5}}}), None, 0.0
        )
        == 60
    )
