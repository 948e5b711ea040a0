"""Heads that are cut off the features and put together again along another dimension are heads like any other."""

import copy

import pytest
import torch
from torch import nn

from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.plan import make_plan
from compress.graph.tracer import trace


def along_the_batch(x, heads):
    return torch.cat(x.split(x.shape[-1] // heads, 2), 0)


def from_the_batch(x, batch):
    return torch.cat(x.split(batch, 0), 2)


def stacked(x, heads):
    return torch.stack(x.chunk(heads, -1), 1)


def unbound(x, batch):
    return torch.cat(x.unbind(1), -1)


def stacked_first(x, heads):
    return torch.stack(x.chunk(heads, -1))


def picked(x, batch):
    return torch.cat([x[head] for head in range(x.shape[0])], dim=-1)


FORMS = {
    "cat along the batch": (along_the_batch, from_the_batch),
    "stack, unbind": (stacked, unbound),
    "stack first, pick": (stacked_first, picked),
}


class Attention(nn.Module):
    """Multi-head attention whose heads are taken apart and put together in one of these forms."""

    def __init__(self, form, alone=False):
        super().__init__()
        self.heads, self.scale, self.form, self.alone = 4, 0.3, form, alone
        self.q, self.k, self.v, self.out = nn.Linear(6, 32), nn.Linear(6, 32), nn.Linear(6, 32), nn.Linear(32, 5)

    def forward(self, x):
        apart, together = self.form
        q, k, v = (apart(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        weights = (q @ k.mT * self.scale).softmax(-1)
        y = self.out(together(weights @ v, x.shape[0]))
        if self.alone:  # the first head by itself
            y = y + self.v(x).split(8, 2)[0].sum(-1, keepdim=True)
        return y


def without_half(model, x, kind):
    """Return outputs of the silenced dense model and of the one without half of the units of the groups of a kind."""
    graph = checked(model, build_graph(model, x), x)
    kept = {g.name: torch.arange(1, g.size, 2) for g in graph.groups if g.kind == kind}
    plan = make_plan(model, graph, kept)
    silenced = copy.deepcopy(model)
    for name, dims in plan.kept.items():
        for dim, stay in dims.items():
            gone = [i for i in range(silenced.get_parameter(name).shape[dim]) if i not in stay]
            silenced.get_parameter(name).data.index_fill_(dim, torch.tensor(gone), 0.0)
    return graph, kept, silenced(x), apply(plan, model)(x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "size"), [("heads", 4), ("head_dims", 8)])
def test_heads_and_their_width_are_narrowed_exactly(form, kind, size):
    torch.manual_seed(0)
    model, x = Attention(FORMS[form]).eval(), torch.randn(1, 7, 6)
    _, kept, dense, small = without_half(model, x, kind)
    assert kept and all(len(units) == size // 2 for units in kept.values())
    torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)


def test_parts_that_are_used_by_themselves_are_no_units():
    torch.manual_seed(0)
    model, x = Attention(FORMS["stack, unbind"], alone=True).eval(), torch.randn(1, 7, 6)
    _, kept, dense, small = without_half(model, x, "heads")
    assert not any("v" in name for name in kept)
    torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)


def test_a_model_without_such_parts_is_traced_once():
    calls = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 3)

        def forward(self, x):
            calls.append(1)
            gate, value = self.a(x).chunk(2, -1)
            return self.b(gate.sigmoid() * value)

    trace(Counting().eval(), torch.randn(1, 6))
    assert len(calls) == 1


class Standardised(nn.Module):
    """Reads the size of a filter off the first of them, whose values it does not use."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)

    def forward(self, x):
        weight = self.a.weight / self.a.weight[0].numel() ** 0.5
        return self.b(nn.functional.conv2d(x, weight, self.a.bias))


def test_a_position_that_is_only_measured_keeps_nothing_whole():
    model, x = Standardised().eval(), torch.randn(1, 3, 6, 6)
    graph = checked(model, build_graph(model, x), x)
    assert [group.name for group in graph.groups] == ["a:channels"]


class Block(nn.Module):
    """Takes its scale and the size of its parts from the width that it keeps (the authors' Set Transformer)."""

    def __init__(self, heads=8, width=64):
        super().__init__()
        self.dim_V, self.num_heads = width, heads
        self.fc_q, self.fc_k, self.fc_v = (nn.Linear(6, width) for _ in range(3))
        self.fc_o = nn.Linear(width, 6)

    def forward(self, x):
        size = self.dim_V // self.num_heads
        q, k, v = (torch.cat(layer(x).split(size, 2), 0) for layer in (self.fc_q, self.fc_k, self.fc_v))
        weights = torch.softmax(q.bmm(k.transpose(1, 2)) / self.dim_V**0.5, 2)
        return self.fc_o(torch.cat((q + weights.bmm(v)).split(x.size(0), 0), 2))


def test_attributes_are_found_with_which_heads_may_go_though_their_width_may_not():
    torch.manual_seed(0)
    model, x = nn.Sequential(Block(), nn.Linear(6, 5)).eval(), torch.randn(1, 7, 6)
    graph, kept, dense, small = without_half(model, x, "heads")
    assert list(kept) == ["0.fc_q:heads"]
    assert "0.fc_q:head_dims" in {skip.layer for skip in graph.skipped}
    torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)


class Growing(nn.Module):
    """Its shortcut grows by channels of zeros, as many as the difference of two numbers that it keeps."""

    def __init__(self, inner, outer):
        super().__init__()
        self.inner, self.outer = inner, outer
        self.a, self.b = nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)

    def forward(self, x):
        more = self.outer - self.inner
        return self.b(self.a(x).relu()) + nn.functional.pad(x, (0, 0, 0, 0, more // 2, more - more // 2))


def test_two_attributes_of_a_class_are_changed_together():
    """One alone goes wrong: only the first block has a width that is like `inner`, which its `outer` goes with."""
    model, x = nn.Sequential(Growing(8, 8), Growing(8, 16)).eval(), torch.randn(1, 8, 8, 8)
    graph = checked(model, build_graph(model, x), x)
    assert [group.name for group in graph.groups] == ["0.a:channels", "1.a:channels"]
