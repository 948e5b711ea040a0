"""NNI's mask pruners as criteria: they measure what NNI measures, unit by unit (`.ci/lowest` has NNI)."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.criteria import unit_criteria
from compress.criteria.score import score_units
from compress.criteria.unit_criterion import ScoringData
from compress.graph.build import build_graph
from compress.prune.structure import plan
from compress.runs.catalog import listing
from compress.testing.criteria import check_unit_criterion
from evaluators.datasets.batch import Batch

nni_installed = importlib.util.find_spec("nni") is not None
needs_nni = pytest.mark.skipif(not nni_installed, reason="NNI is not installed: pip install 'compress[nni]'")
NAMES = unit_criteria.names("nni:*")
DATA_FREE = ["nni:FPGMPruner", "nni:L1NormPruner", "nni:L2NormPruner", "nni:LevelPruner"]


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)).eval()


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 5, (3, 16), generator=generator)
    return [Batch(torch.randn(16, 3, 16, 16, generator=generator), each) for each in targets]


def scores_of(model: nn.Module, name: str, **options: Any) -> dict[str, Tensor]:
    graph = build_graph(model, torch.randn(1, 3, 16, 16))
    data = ScoringData(graph, batches=lambda: iter(batches()))
    return score_units(model, graph, unit_criteria.get(name)(**options), data)[1]


@needs_nni
@pytest.mark.parametrize("name", NAMES)
def test_every_pruner_is_a_criterion_that_leaves_the_model_as_it_was(name: str) -> None:
    check_unit_criterion(name)


@needs_nni
@pytest.mark.parametrize("name", DATA_FREE)
def test_what_is_worth_least_is_what_nni_masks(name: str) -> None:
    from nni.compression import pruning

    model = network()
    scores = scores_of(model, name)
    wanted: dict[str, Any] = {"op_names": ["0", "3"], "target_names": ["weight"], "sparse_ratio": 0.5}
    if name == "nni:LevelPruner":  # by itself it masks single weights
        wanted["target_settings"] = {"weight": {"granularity": "out_channel"}}
    masks = getattr(pruning, name.removeprefix("nni:"))(copy.deepcopy(model), [wanted]).compress()[1]
    for layer, group in (("0", "0:channels"), ("3", "3:channels")):
        masked = masks[layer]["weight"].flatten(1).amax(1) == 0
        assert int(masked.sum()) == len(masked) // 2
        assert scores[group][masked].max() <= scores[group][~masked].min()


@needs_nni
def test_taylor_is_the_sum_of_squared_products_over_the_draws() -> None:
    model = network()
    scores = scores_of(model, "nni:TaylorPruner", steps=4, lr=0)
    draws = [draw for batch in batches() for draw in batch.split(8)][:4]
    weight = model.get_parameter("3.weight")
    expected = torch.zeros(12, dtype=torch.float64)
    for draw in draws:
        loss = nn.functional.cross_entropy(model(draw.inputs), draw.targets)
        (slope,) = torch.autograd.grad(loss, weight)
        expected += (weight * slope).detach().double().square().sum((1, 2, 3))
    torch.testing.assert_close(scores["3:channels"], expected / expected.mean(), rtol=1e-4, atol=1e-6)


@needs_nni
def test_it_prunes_and_what_it_cannot_measure_is_named() -> None:
    model = network()
    found = plan(model, torch.randn(1, 3, 16, 16), "nni:L2NormPruner", {"macs": 0.5}, align=1)
    assert found.macs[1] < 0.55 * found.macs[0]
    up = nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with pytest.raises(InputError, match=r"'nni:L1NormPruner' measures rows .*; 0:channels has none"):
        scores_of(up, "nni:L1NormPruner")


def test_they_are_listed_with_what_they_need() -> None:
    listed = listing("criteria", "nni:*")
    assert {*DATA_FREE, "nni:TaylorPruner", "nni:SlimPruner", "nni:MovementPruner"} == listed.keys()
    assert all(text.endswith("(extra nni).") for text in listed.values())


@pytest.mark.skipif(nni_installed, reason="NNI is installed")
def test_without_nni_the_extra_is_named_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"'nni:TaylorPruner' needs the extra: pip install 'compress\[nni\]'"):
        unit_criteria.get("nni:TaylorPruner")().check()
