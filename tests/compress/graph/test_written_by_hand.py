"""Layers as people write them by hand: what could be narrowed is, and computes what the silenced dense model does."""

import copy
import math
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import compress
from compress.core.errors import InputError
from compress.core.tensors import call, doubled, flat
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.graph import inside
from compress.graph.plan import make_plan
from evaluators.cost import count_macs, parameter_macs


def rotated(x):
    """Turn both halves of every head against each other, by angles that grow with the position."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / 10 ** (torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    turned = (first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos())
    return torch.cat(turned, -1).type(x.dtype)


class Normalised(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain, self.scale = nn.Parameter(torch.rand(width) + 0.5), width**0.5

    def forward(self, x):
        return F.normalize(x, dim=-1) * self.scale * self.gain


class Grouped(nn.Module):
    """A decoder block: rotary embeddings, four queries to each key, gated hidden units."""

    def __init__(self, width=64, heads=8, keys=2):
        super().__init__()
        self.heads, self.keys, self.size = heads, keys, width // heads
        self.norms = nn.ModuleList(Normalised(width) for _ in range(2))
        self.q, self.k, self.v = (nn.Linear(width, n * self.size, bias=False) for n in (heads, keys, keys))
        self.o = nn.Linear(heads * self.size, width, bias=False)
        self.gate, self.up, self.down = nn.Linear(width, 128), nn.Linear(width, 128), nn.Linear(128, width)
        self.table, self.head = nn.Embedding(50, width), nn.Linear(width, 50, bias=False)

    def forward(self, tokens):
        x = self.table(tokens)
        y, (b, n) = self.norms[0](x), tokens.shape
        q = self.q(y).view(b, n, self.heads, self.size).transpose(1, 2)
        k, v = (layer(y).view(b, n, self.keys, self.size).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (each.repeat_interleave(self.heads // self.keys, 1) for each in (rotated(k), v))
        x = x + self.o(F.scaled_dot_product_attention(rotated(q), k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class Bags(nn.Module):
    """Two tables of features summed up in bags."""

    def __init__(self):
        super().__init__()
        self.mean, self.sum = nn.EmbeddingBag(40, 32, mode="mean"), nn.EmbeddingBag(40, 16, mode="sum")
        self.hidden, self.head = nn.Linear(48, 64), nn.Linear(64, 3)

    def forward(self, words):
        return self.head(self.hidden(torch.cat([self.mean(words), self.sum(words)], 1)).relu())


class Compiled(nn.Module):
    """A part of it was compiled."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 24)
        self.b = torch.compile(nn.Sequential(nn.Linear(24, 32), nn.ReLU()), backend="eager")
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.b(self.a(x)))


class Windows(nn.Module):
    """Torch's attention over three windows of every sample, or over samples, by an order mistaken."""

    def __init__(self, by_window):
        super().__init__()
        self.by_window = by_window
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 5)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=by_window)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        x = self.embed(x)
        windows = x.reshape(len(x) * 3, 4, -1) if self.by_window else x
        x = x + self.attend(windows, windows, windows, need_weights=False)[0].reshape(x.shape)
        return self.head((x + self.down(self.up(x).relu())).mean(1))


KINDS = {
    "rotary grouped queries": (Grouped, torch.arange(12)[None], 0.1),
    "bags of embeddings": (Bags, torch.arange(8)[None], 0.1),
    "attention over windows": (partial(Windows, True), torch.randn(1, 12, 8), 0.1),
    "attention over samples": (partial(Windows, False), torch.randn(1, 12, 8), 0.1),
    "compiled inside": (Compiled, torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), 0.2),
}
"""What makes it, what it takes, and which share of its MACs lies in layers that stay whole, at most (its head)."""


def silenced(model, plan):
    """Return the dense model in double precision with all that the plan removes at zero."""
    model = copy.deepcopy(model).double()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, kept in dims.items():
                gone = sorted(set(range(tensors[name].shape[dim])) - set(kept))
                tensors[name].index_fill_(dim, torch.tensor(gone), 0)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_macs_is_exactly_the_dense_model_without_the_removed_units(kind):
    make, inputs, most = KINDS[kind]
    torch.manual_seed(0)
    model = make().eval()
    plan = compress.plan(model, inputs, criterion="random", budget={"macs": 0.5}, align=1)
    assert 0.47 <= plan.macs[1] / plan.macs[0] <= 0.53
    whole = {skip.layer for skip in plan.skipped if ":" not in skip.layer}
    macs = parameter_macs(model, inputs)
    assert sum(n for name, n in macs.of_parameter.items() if inside(name, whole)) <= most * macs.total, plan.skipped
    small = compress.apply(plan, model)
    with torch.no_grad():
        expected = flat(call(silenced(model, plan), doubled(inputs)))
        found = flat(call(copy.deepcopy(small).double(), doubled(inputs)))
        assert math.isclose(0, (expected - found).abs().max(), abs_tol=1e-9)
        again = compress.apply(plan, make().eval())
        again.load_state_dict(small.state_dict())
        assert torch.equal(flat(call(again, inputs)), flat(call(small, inputs)))


class Sizes(NamedTuple):
    heads: int
    size: int


class InTuple(nn.Module):
    """Keeps the number of heads in a named tuple; in `OfClass` it is the class's."""

    def __init__(self):
        super().__init__()
        self.sizes, self.qkv, self.out = Sizes(4, 8), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        return self.attended(x, self.sizes.heads)

    def attended(self, x, heads):
        q, k, v = self.qkv(x).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * 0.3).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class OfClass(InTuple):
    heads = 4

    def forward(self, x):
        return self.attended(x, self.heads)


class WeightsUnused(nn.Module):
    """Torch's attention as most call it: with the mean of its weights, which nothing uses."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Joined(nn.Module):
    """Heads of two concatenated projections, counted by what there is (EfficientViT's linear attention)."""

    def __init__(self):
        super().__init__()
        self.size, self.qkv = 8, nn.Conv1d(32, 96, 1)
        self.around, self.out = nn.Conv1d(96, 96, 3, padding=1, groups=96), nn.Conv1d(64, 32, 1)

    def forward(self, x):
        y = self.qkv(x.mT)
        y = torch.cat([y, self.around(y)], 1)
        q, k, v = y.reshape(len(x), -1, 3 * self.size, x.shape[1]).chunk(3, 2)
        y = v @ k.relu().transpose(2, 3) @ q.relu()
        return self.out(y.reshape(len(x), -1, x.shape[1])).mT


@pytest.mark.parametrize("kind", [InTuple, OfClass, WeightsUnused, Joined])
def test_heads_go_wherever_their_number_is_kept(kind):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 32), kind(), nn.Linear(32, 3)).eval(), torch.randn(1, 6, 5)
    graph = checked(model, build_graph(model, x), x)
    (heads,) = (group for group in graph.groups if group.kind == "heads")
    plan = make_plan(model, graph, {heads.name: torch.tensor([0, 3])})
    with torch.no_grad():
        torch.testing.assert_close(apply(plan, model).double()(x.double()), silenced(model, plan)(x.double()))
    if kind is InTuple:
        assert apply(plan, model)[1].sizes == Sizes(2, 8)


class Strict(nn.Module):
    """Compares the width of what it is given with a number that it keeps and uses nowhere else."""

    def __init__(self, width, raises):
        super().__init__()
        self.width, self.raises = width, raises
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        if self.raises and x.shape[-1] != self.width:
            raise ValueError(f"the width is {x.shape[-1]}")
        assert x.shape[-1] == self.width
        return self.layer(x)


def test_a_width_that_is_asserted_follows():
    torch.manual_seed(0)
    layers = [nn.Linear(3, 16), Strict(16, False), nn.ReLU(), Strict(16, True), nn.Linear(16, 3)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 3)
    graph = checked(model, build_graph(model, x), x)
    plan = make_plan(model, graph, {group.name: torch.arange(10) for group in graph.groups})
    small = apply(plan, model)
    assert [small[1].width, small[3].width, small[4].in_features] == [10, 10, 10]
    with torch.no_grad():
        torch.testing.assert_close(small.double()(x.double()), silenced(model, plan)(x.double()))


class Experts(nn.Module):
    """Every token goes to two experts of four; those that none goes to are left out."""

    def __init__(self, width=32, count=4, hidden=64):
        super().__init__()
        self.first, self.gate, self.head = nn.Linear(8, width), nn.Linear(width, count), nn.Linear(width, 5)
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(count))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(count))

    def forward(self, x):
        x = self.first(x)
        tokens = x.flatten(0, 1)
        weights, chosen = self.gate(tokens).softmax(-1).topk(2, -1)
        out = torch.zeros_like(tokens)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            token, slot = torch.where(chosen == number)
            if token.numel():
                out[token] += down(F.gelu(up(tokens[token]))) * weights[token, slot, None]
        return self.head((x + out.view(x.shape)).mean(1))


def test_experts_that_the_example_does_not_reach_fit_what_feeds_them():
    torch.manual_seed(0)
    model, x = Experts().eval(), torch.randn(1, 1, 8)  # one token
    plan = compress.plan(model, x, criterion="random", budget={"macs": 0.5}, align=1)
    idle = [name for name in plan.kept if name.endswith("weight") and "up." in name and 0 not in plan.kept[name]]
    assert len(idle) == 2  # their hidden units stay
    assert {skip.layer for skip in plan.skipped} == {"gate", "head", *(name.removesuffix(".weight") for name in idle)}
    others, small = torch.randn(1, 40, 8, dtype=torch.float64), compress.apply(plan, model).double()
    reached = []
    for name in idle:
        small.get_submodule(name.rpartition(".")[0]).register_forward_hook(lambda *_: reached.append(1))
    torch.testing.assert_close(small(others), silenced(model, plan)(others), rtol=0, atol=1e-9)
    assert len(reached) == 2


def test_other_widths_send_tokens_elsewhere_and_the_plan_says_what_that_costs(capsys):
    torch.manual_seed(2)
    model, x = Experts().eval(), torch.randn(1, 3, 8)
    plan = compress.plan(model, x, criterion="random", budget={"macs": 0.5}, align=1)
    assert plan.macs == (count_macs(model, x), count_macs(compress.apply(plan, model), x))
    assert "on the example it takes 54.0% of its MACs where the widths alone foretell 50.2%" in capsys.readouterr().err


class Viewed(nn.Module):
    """Forms what its layer gives by a number, which is also the width of what comes in."""

    def __init__(self, width):
        super().__init__()
        self.size, self.layer = width, nn.Linear(width, width)

    def forward(self, x):
        return self.layer(x.tanh()).view(len(x), self.size)


class Chain(nn.Module):
    """Between both widths lie four others: trials that go round by fives give both the same share."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 20)
        self.between = nn.ModuleList(nn.Linear(20, 10 + 4 * n) for n in range(4))
        self.last, self.head = Viewed(20), nn.Linear(20 + 64, 5)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head(torch.cat([self.last(x).relu(), *(layer(x).relu() for layer in self.between)], 1))


def test_a_number_follows_the_width_that_it_is_and_not_one_that_keeps_the_same_share_by_chance():
    torch.manual_seed(0)
    model, x = Chain().eval(), torch.randn(1, 8)
    graph = checked(model, build_graph(model, x), x)
    assert [group.name.partition(":")[0] for group in graph.groups][::5] == ["first", "last.layer"]
    names = [group.name for group in graph.groups]
    kept = {names[0]: torch.arange(6), names[5]: torch.arange(14)}
    apply(make_plan(model, graph, kept), model)(x)


class Telling(nn.Module):
    """Gives its features in an object, beside its logits."""

    def __init__(self, form):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 16, 3), nn.Linear(16, 5)
        self.form = form

    def forward(self, x):
        y = self.b(self.a(x).relu()).mean((2, 3))
        return {"logits": self.head(y), "more": self.form(y)}


@pytest.mark.parametrize("form", [lambda y: SimpleNamespace(pooled=y), lambda y: torch.distributions.Normal(y, 1.0)])
def test_outputs_in_objects_keep_their_sizes(form):
    plan = compress.plan(Telling(form).eval(), torch.randn(1, 3, 8, 8), criterion="random", ratio=0.5, align=1)
    assert {row.name: (row.before, row.after) for row in plan.layers} == {"a:channels": (24, 12)}


@pytest.mark.parametrize("form", [lambda y: (each for each in [y]), lambda y: y.numpy()])
def test_outputs_that_hide_tensors_are_refused(form):
    with pytest.raises(InputError, match=r"the model returns a (generator|ndarray), whose tensors cannot be seen"):
        compress.plan(Telling(form).eval(), torch.randn(1, 3, 8, 8), criterion="random", ratio=0.5)


class Neighbours(nn.Module):
    """Features of nodes summed over a sparse adjacency; gives them in a form of its own."""

    def __init__(self, form):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))
        self.a, self.head, self.form = nn.Linear(8, 24), nn.Linear(24, 5), form
        self.register_buffer("near", (torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.5).double())

    def forward(self, x):
        near = self.near.to(x.dtype).to_sparse()
        x = torch.stack([torch.sparse.mm(near, each) for each in self.a(self.first(x))]).relu()
        return self.form(self.head(x))


FORMS = {
    "dense": lambda y: y,
    "sparse": lambda y: y.relu().to_sparse(),
    "quantised": lambda y: torch.quantize_per_tensor(y.float(), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("form", FORMS)
def test_sparse_and_quantised_tensors_are_compared(form):
    torch.manual_seed(0)
    model, x = Neighbours(FORMS[form]).eval(), torch.randn(1, 6, 8)
    plan = compress.plan(model, x, criterion="random", ratio=0.5, align=1)
    assert {row.name for row in plan.layers if row.after < row.before} == {"first.0:mlp", "first.2:mlp"}
    found, expected = compress.apply(plan, model)(x), silenced(model, plan)(x.double())
    found, expected = (each.dequantize() if each.is_quantized else each.to_dense() for each in (found, expected))
    assert (found - expected).abs().max() <= (0.11 if form == "quantised" else 1e-5)
