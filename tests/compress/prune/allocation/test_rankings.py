"""Which criterion ranks the units of a group: what loses less, measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.graph.graph import Graph
from compress.graph.known import Known
from compress.prune.allocation.decisions import Decision, decisions_of
from compress.prune.allocation.losses import Judges, key_of, measured_losses
from compress.prune.allocation.rankings import best_ranked
from compress.prune.allocation.replay import Replay
from compress.prune.structure_config import StructureConfig
from evaluators.datasets.batch import Batch
from evaluators.tasks import UNSIZED

BATCHES = [Batch(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(64))]


class Net(nn.Module):
    """The first four units of `a`, and the last four of `b`, change nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.b.weight[:, :4] = 0
            self.head.weight[:, 4:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu())


def test_each_group_is_ranked_by_the_criterion_that_loses_less() -> None:
    dense = Net().eval()
    graph = Known().graph(dense, torch.randn(1, 6))
    rising = {name: torch.arange(8.0) for name in ("a:mlp", "b:mlp")}
    falling = {name: -values for name, values in rising.items()}
    decisions = decisions_of(graph, lambda name: [2, 4, 6])
    replay, asked, known = Replay(dense, BATCHES, UNSIZED, graph.blocks), [], dict[str, Any]()

    def judges() -> Judges:
        asked.append(1)
        return Judges(replay, lambda small, plan: None, lambda stage, small, plan: None)

    scored = {"rising": (graph, rising), "falling": (graph, falling)}
    best, worth = best_ranked(scored, decisions, judges, known)
    assert worth["a:mlp"] is rising["a:mlp"] and worth["b:mlp"] is falling["b:mlp"]
    assert [group.name for group in best.groups] == [group.name for group in graph.groups]
    assert known["a:mlp=4"] == known["a:mlp=4 by rising"] == pytest.approx(0, abs=1e-12)
    assert known["a:mlp=4 by falling"] > 0.01
    table = measured_losses(best, worth, decisions, {}, judges, known)
    assert table.widths["b:mlp"][1] == pytest.approx(0, abs=1e-12) and table.widths["b:mlp"][0] > 0
    assert asked
    best_ranked(scored, decisions, lambda: pytest.fail("all is known"), known)


def test_one_criterion_alone_is_not_compared() -> None:
    graph = Known().graph(Net().eval(), torch.randn(1, 6))
    decision = Decision(("a:mlp",), ({"a:mlp": 4}, {"a:mlp": 8}))
    scores = {"a:mlp": torch.ones(8)}
    found = best_ranked({"obs": (graph, scores)}, [decision], lambda: pytest.fail("nothing is measured"), {})
    assert found == (graph, scores) and key_of({"a:mlp": 4}, graph) == "a:mlp=4"


def test_groups_take_the_units_that_their_criterion_has_matched() -> None:
    dense = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    graph = Known().graph(dense, torch.randn(1, 6))
    other = Graph(
        **{**vars(graph), "groups": tuple(group.rematched(torch.arange(8).flip(0)[None]) for group in graph.groups)}
    )
    name = graph.groups[0].name
    replay = Replay(dense, BATCHES, UNSIZED, graph.blocks)
    judges = Judges(replay, lambda small, plan: None, lambda stage, small, plan: None)
    worth = dense[2].weight.detach().abs().sum(0).double()
    scored = {"worst": (graph, {name: -worth}), "best": (other, {name: worth.flip(0)})}
    decision = Decision((name,), ({name: 4}, {name: 8}))
    best, _ = best_ranked(scored, [decision], lambda: judges, {})
    assert best.group(name) is other.group(name)


def test_a_criterion_that_cannot_score_a_group_is_passed_over() -> None:
    dense = Net().eval()
    graph = Known().graph(dense, torch.randn(1, 6))
    judges = Judges(Replay(dense, BATCHES, UNSIZED, graph.blocks), lambda small, plan: None, lambda *_: None)
    scores = {"a:mlp": torch.arange(8.0), "b:mlp": torch.arange(8.0)}
    scored = {"all": (graph, scores), "one": (graph, {"b:mlp": -scores["b:mlp"]})}
    _, worth = best_ranked(scored, decisions_of(graph, lambda name: [4]), lambda: judges, {})
    assert worth["a:mlp"] is scores["a:mlp"] and worth["b:mlp"] is scored["one"][1]["b:mlp"]


def test_alternatives_are_for_latencies() -> None:
    latency = {"kind": "structure", "budget": {"latency": 0.5}, "alternatives": ["taylor", "obs"]}
    assert StructureConfig.model_validate(latency).alternatives == ["taylor", "obs"]
    with pytest.raises(ValueError, match="alternatives are compared for a budget of latency alone"):
        StructureConfig.model_validate({**latency, "budget": {"macs": 0.5}})
    with pytest.raises(ValueError, match="obss"):
        StructureConfig.model_validate({**latency, "alternatives": ["obss"]})
