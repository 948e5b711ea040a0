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
    [([True] * 8, 40), ([False, False, True, False, True, False], 46)],
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


class Pair(nn.Module):
    """Views its queries by the width of the stream and a number of heads that it keeps, as `c // heads`."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, c // self.heads, h * w) for t in self.qkv(x).chunk(3, 1))
        weights = (nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).mT).softmax(-1)
        return x + self.proj((weights @ v).reshape(b, c, h, w))


class Joined(nn.Module):
    """Two streams, one of which goes on beside the other: neither they nor the heads can be narrowed alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.first, self.second, self.out = Pair(16, 2), Pair(32, 2), nn.Conv2d(32, 5, 1)

    def forward(self, x):
        x = self.first(self.a(x))
        return self.out(self.second(torch.cat([self.b(x), x], 1)))


def test_a_tie_grows_until_the_model_runs():
    torch.manual_seed(0)
    model, x = Joined().eval(), torch.randn(1, 3, 8, 8)
    graph = checked(model, build_graph(model, x), x)
    assert graph.ties == (("a:channels", "b:channels", "first.qkv:heads", "second.qkv:heads"),)


class Cell(nn.Module):
    """Keeps the number of its hidden channels, which may be that of its input as well."""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.hidden, self.conv = hidden, nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def start(self, x):
        return torch.zeros(len(x), self.hidden, *x.shape[2:]), torch.zeros(len(x), self.hidden, *x.shape[2:])

    def forward(self, x, state):
        h, c = state
        i, f, o, g = self.conv(torch.cat([x, h], 1)).split(self.hidden, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class Frames(nn.Module):
    """Two cells, the first as wide as its input."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), Cell(8, 8), Cell(8, 16)
        self.out = nn.Conv2d(16, 5, 1)

    def forward(self, video):
        first, second = self.first.start(video[:, 0]), self.second.start(video[:, 0])
        for frame in video.unbind(1):
            first = self.first(self.stem(frame), first)
            second = self.second(first[0], second)
        return self.out(second[0])


def test_modules_of_a_class_may_follow_widths_at_other_places():
    torch.manual_seed(0)
    model, x = Frames().eval(), torch.randn(1, 2, 3, 6, 6)
    graph = checked(model, build_graph(model, x), x)
    assert {group.name for group in graph.groups} == {"stem:channels", "first.conv:channels", "second.conv:channels"}
