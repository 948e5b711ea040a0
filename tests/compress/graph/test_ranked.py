"""Values that are equal but for rounding may be ranked in any order: that is no fault of a narrowed model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.recording import Recording
from compress.graph.rules import RULES
from compress.graph.rules.rule import positions


class Ranked(nn.Module):
    """Every row has its score twice, summed up in two ways; the rows of the best scores go on."""

    def __init__(self, ranked: str) -> None:
        super().__init__()
        self.a, self.score, self.b, self.c = nn.Linear(8, 64), nn.Linear(64, 1), nn.Linear(64, 16), nn.Linear(16, 4)
        self.ranked = ranked

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        scores = torch.cat([self.score(h)[:, 0], (h.flip(0) * self.score.weight).sum(1).flip(0) + self.score.bias])
        places = scores.topk(12).indices if self.ranked == "topk" else scores.sort(descending=True).indices[:12]
        chosen: Tensor = self.c(torch.cat([self.b(h), 2 * self.b(h)]).index_select(0, places).relu())
        return chosen


def test_ties_of_ranked_values_keep_no_width_whole() -> None:
    torch.manual_seed(0)
    for ranked in ("topk", "sort"):
        model, inputs = Ranked(ranked).eval(), (torch.randn(40, 8),)
        graph = checked(model, build_graph(model, inputs), inputs)
        assert {group.name.split(":")[0] for group in graph.groups} == {"a", "b"}, ranked


class Renumbered(nn.Module):
    """Which feature is the largest, as a number: another one where features were removed before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        given: Tensor = self.b(h) + h.topk(2, dim=1).indices.float().mean()
        return given


def test_places_that_are_renumbered_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(seen: Recording, args: Sequence[Any], kwargs: Any, out: Sequence[Tensor]) -> None:
        for result in out:
            seen.set(result, positions(result.shape))  # says nothing of what it ranks

    torch.manual_seed(0)
    model, inputs = Renumbered().eval(), (torch.randn(40, 8),)
    assert not build_graph(model, inputs).groups
    monkeypatch.setitem(RULES, "topk", wrong)
    graph = build_graph(model, inputs)
    assert [group.size for group in graph.groups] == [32]
    found = checked(model, graph, inputs)
    assert not found.groups and "topk gives other values" in found.skipped[-1].reason
