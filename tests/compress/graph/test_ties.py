"""Widths that must keep the same fraction: which are tied, which are let go, and how many trials that takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.graph import check
from compress.graph.build import build_graph
from compress.graph.check import checked

WIDTH, HEADS = 16, 2


class Block(nn.Module):
    """Views its values by the width of the stream (`by_stream`), which ties the two, or by their own."""

    def __init__(self, by_stream: bool) -> None:
        super().__init__()
        self.by_stream = by_stream
        self.value, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, tokens, width = x.shape
        value = self.value(x)
        width = width if self.by_stream else value.shape[-1]
        value = value.reshape(batch, tokens, HEADS, width // HEADS).transpose(1, 2).softmax(-2)
        x = x + self.proj(value.transpose(1, 2).flatten(2))
        return x + self.narrow(self.wide(x).relu())


@pytest.mark.parametrize(
    ("by_stream", "most"),
    [([True] * 8, 36), ([False, False, True, False, True, False], 42)],
    ids=["all blocks", "two of six"],
)
def test_what_must_keep_the_same_fraction_is_tied_and_nothing_else(monkeypatch, by_stream, most):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, WIDTH), *map(Block, by_stream), nn.Linear(WIDTH, 3)).eval()
    x, trials, fault = torch.randn(1, 5, 4), [], check._Trials.fault

    def counted(*given, **options):
        trials.append(given)
        return fault(*given, **options)

    monkeypatch.setattr(check._Trials, "fault", counted)
    graph = checked(model, build_graph(model, x), x)
    (tie,) = graph.ties
    blocks = [place for place, tied in enumerate(by_stream, 1) if tied]
    assert [name.partition(":")[0] for name in tie] == ["0", *(f"{block}.value" for block in blocks)]
    assert {group.name for group in graph.groups} >= {f"{block}.wide:mlp" for block in range(1, len(by_stream) + 1)}
    assert len(trials) <= most
