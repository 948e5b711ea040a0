"""Parts and joins of widths: groups that lie across a concatenation, heads whose widths are split into equal parts."""

import pytest
import torch
from torch import nn

import compress
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.plan import make_plan


class AcrossTheJoin(nn.Module):
    """Three groups of 12 channels over 20, themselves five groups, and 16: the second lies in both."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 20, 3), nn.Conv2d(3, 16, 3)
        self.first, self.norm, self.c = nn.GroupNorm(5, 20), nn.GroupNorm(3, 36), nn.Conv2d(36, 5, 1)

    def forward(self, x):
        return self.c(self.norm(torch.cat([self.first(self.a(x)), self.b(x)], 1)))


def test_groups_of_a_norm_across_a_concatenation_lose_the_same_of_every_block():
    torch.manual_seed(0)
    model, x = AcrossTheJoin().eval(), torch.randn(1, 3, 8, 8)
    graph = checked(model, build_graph(model, x), x)
    (group,) = graph.groups
    assert (group.size, group.normalised) == (4, True)  # blocks of 4: five of a, four of b
    plan = compress.plan(model, x, "random", ratio=0.5, align=1)
    kept = plan.kept["norm.weight"][0]
    assert [len([i for i in kept if i // 4 == block]) for block in range(9)] == [2] * 9
    small = compress.apply(plan, model)
    of_a = [i for i in kept if i < 20]
    first = nn.functional.group_norm(model.a(x)[:, of_a], 5)
    joined = torch.cat([first, model.b(x)[:, [i - 20 for i in kept if i >= 20]]], 1)
    normed = nn.functional.group_norm(joined, 3)
    expected = nn.functional.conv2d(normed, model.c.weight[:, list(kept)], model.c.bias)
    assert torch.allclose(small(x), expected, atol=1e-5)


def test_widths_that_share_no_block_stay_whole():
    model = AcrossTheJoin()
    model.b, model.norm, model.c = nn.Conv2d(3, 7, 3), nn.GroupNorm(3, 27), nn.Conv2d(27, 5, 1)
    graph = build_graph(model.eval(), torch.randn(1, 3, 8, 8))
    assert {skip.layer for skip in graph.skipped} == {"a", "b", "c"}


class SplitHeads(nn.Module):
    """Heads first, then queries, keys and values of each head: (heads, 3, width), split into three."""

    def __init__(self, scale):
        super().__init__()
        self.heads, self.scale = 4, scale
        self.qkv, self.out = nn.Linear(12, 96), nn.Linear(32, 5)

    def forward(self, x):
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.split(qkv.shape[-1] // 3, dim=-1)
        weights = (q @ k.transpose(-1, -2) * (self.scale or q.shape[-1] ** -0.5)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))


def test_heads_whose_width_is_split_are_narrowed():
    torch.manual_seed(0)
    model, x = SplitHeads(0.4).eval(), torch.randn(1, 6, 12)
    graph = checked(model, build_graph(model, x), x)
    assert {(group.kind, group.size) for group in graph.groups} == {("heads", 4), ("head_dims", 8)}
    plan = compress.plan(model, x, "random", ratio=0.5, align=1)
    small = compress.apply(plan, model)
    assert small.heads < 4 and small.out.in_features < small.heads * 8
    with torch.no_grad():
        for weight in (model.qkv.weight, model.qkv.bias):
            gone = sorted(set(range(96)) - set(plan.kept["qkv.weight"][0]))
            weight[gone] = 0
    assert torch.allclose(small(x), model(x), atol=1e-6)


def test_a_scale_that_follows_the_width_is_told_and_keeps_it():
    torch.manual_seed(0)
    model, x = SplitHeads(None).eval(), torch.randn(1, 6, 12)
    graph = checked(model, build_graph(model, x), x)
    assert {group.kind for group in graph.groups} == {"heads"}
    (reason,) = (skip.reason for skip in graph.skipped if skip.layer == "qkv:head_dims")
    assert "by one factor" in reason


def turned_by_slices(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def turned_by_chunks(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1) * sin + x * cos


def turned_along_two_sides(x, cos, sin):
    parts = zip(*(each.split(x.shape[-1] // 2, -1) for each in (x, cos, sin)), strict=True)
    return torch.cat([turned_by_slices(*each) for each in parts], -1)


class TurnedHeads(nn.Module):
    """Queries and keys are turned by their positions (RoPE): one half of the width of a head meets the other."""

    def __init__(self, turned):
        super().__init__()
        self.heads, self.width, self.turned = 4, 8, turned
        self.q, self.k, self.v, self.out = nn.Linear(12, 32), nn.Linear(12, 32), nn.Linear(12, 32), nn.Linear(32, 5)
        self.norm = nn.RMSNorm(8)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.3]))

    def forward(self, x):
        b, n, _ = x.shape
        angles = torch.arange(float(n))[:, None] * self.frequencies
        angles = torch.cat([angles] * 4, -1)
        q, k, v = (layer(x).view(b, n, self.heads, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = (self.turned(self.norm(each), angles.cos(), angles.sin()) for each in (q, k))
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize("turned", [turned_by_slices, turned_by_chunks, turned_along_two_sides])
def test_heads_whose_halves_are_turned_may_go(turned):
    torch.manual_seed(0)
    model, x = TurnedHeads(turned).eval(), torch.randn(1, 6, 12)
    graph = checked(model, build_graph(model, x), x)
    (heads,) = (group for group in graph.groups if group.kind == "heads")
    assert heads.size == 4
    small = compress.apply(make_plan(model, graph, {heads.name: torch.tensor([0, 2])}), model)
    assert (small.heads, small.width, small.q.out_features) == (2, 8, 16)
    with torch.no_grad():
        model.out.weight.view(5, 4, 8)[:, [1, 3]] = 0
    assert torch.allclose(small(x), model(x), atol=1e-6)
