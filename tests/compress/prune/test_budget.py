"""Budgets: one of three, met within their tolerance, or refused with the nearest figure."""

from __future__ import annotations

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import nn

from compress.core.errors import InputError
from compress.criteria.score import score_units
from compress.criteria.unit_criterion import ScoringData
from compress.graph.build import build_graph
from compress.graph.cost_model import CostModel
from compress.graph.select import Selector
from compress.graph.widths import WidthRules
from compress.prune.budget import BudgetConfig, meet_budget


@pytest.fixture(scope="module")
def scored():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10).eval()
    graph = build_graph(model, torch.randn(1, 3, 64, 64))
    return score_units(model, graph, "dimap", ScoringData(graph))


def meet(scored, rules: WidthRules | None = None, **budget):
    config = BudgetConfig(**budget)
    rules = rules or WidthRules()
    selector = Selector(*scored, CostModel(scored[0], config.counted), rules=rules)
    return meet_budget(selector, config, rules)


@pytest.mark.parametrize(
    "given", [{}, {"macs": 0.5, "params": 0.5}, {"macs": 1.5}, {"macs": 0.0}, {"flops": 0.5}, {"latency_ms": 0.0}]
)
def test_a_budget_is_exactly_one_fraction_or_time(given):
    with pytest.raises(ValidationError):
        BudgetConfig(**given)


def test_a_budget_knows_its_kind():
    assert (BudgetConfig(macs=0.5).kind, BudgetConfig(params=0.4).target) == ("macs", 0.4)
    assert [BudgetConfig(**{k: 0.5}).counted for k in ("macs", "params", "latency")] == ["macs", "params", "macs"]
    assert [BudgetConfig(**{k: 0.5}).timed for k in ("macs", "latency", "latency_ms")] == [False, True, True]
    assert str(BudgetConfig(latency_ms=4.0)) == "latency_ms: 4"


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("target", [0.9, 0.5, 0.1])
def test_counted_budgets_are_met_within_two_percent(scored, kind, target):
    choice = meet(scored, WidthRules(16), **{kind: target})
    graph = scored[0]
    assert getattr(graph, kind)(choice.widths) / getattr(graph, kind)() == pytest.approx(target, abs=0.02)


def test_a_budget_below_the_floors_is_refused_with_the_nearest(scored):
    with pytest.raises(
        InputError, match=r"prune\.budget\.macs: 0\.1 cannot be met; the nearest .* 0\.2\d\d.*least width"
    ):
        meet(scored, WidthRules(16, min_fraction=0.5), macs=0.1)


def test_a_budget_between_coarse_widths_is_refused_with_the_reason(scored):
    graph, scores = scored
    rules = WidthRules(256)
    one = {"layer4.1.conv1:channels": scores["layer4.1.conv1:channels"]}  # 256 or 512 channels
    selector = Selector(graph, one, CostModel(graph, "params"), rules=rules)
    with pytest.raises(InputError, match=r"0\.9 cannot be met.*align 256 .* too far apart; a smaller prune\.align"):
        meet_budget(selector, BudgetConfig(params=0.9), rules)


def test_of_few_units_no_smaller_align_is_advised():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
    graph = build_graph(model, torch.zeros(1, 3, 8, 8))
    scores = {group.name: torch.arange(float(group.size)) for group in graph.groups}
    rules = WidthRules(1)
    with pytest.raises(InputError, match=r"0\.6 cannot be met; .* is 0\.500: one unit more or less"):
        meet_budget(Selector(graph, scores, CostModel(graph), rules=rules), BudgetConfig(macs=0.6), rules)


def test_a_step_on_the_way_meets_its_own_target(scored):
    config, rules = BudgetConfig(macs=0.5), WidthRules()
    selector = Selector(*scored, CostModel(scored[0]), rules=rules)
    assert meet_budget(selector, config, rules, target=0.75).achieved == pytest.approx(0.75, abs=0.02)
