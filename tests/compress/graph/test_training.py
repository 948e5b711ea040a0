"""What a model's code does in training alone: the narrowed model trains as well, and is no wider than it must be."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import compress
from compress.core.modes import training_code
from compress.graph.build import build_graph
from compress.graph.tracer import trace
from compress.graph.watch import watched


def images(count=1):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


class Plain(nn.Module):
    """Two convolutions and a head; `between` is what happens after the first one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 48, 3, padding=1), nn.Linear(48, 5)

    def between(self, x):
        return x

    def forward(self, x):
        return self.head(self.b(self.between(self.a(x).relu())).relu().mean((2, 3)))


class Literal(Plain):
    def between(self, x):
        return x * (torch.rand(len(x), 32, 1, 1) > 0.2) if self.training else x


class Regrouped(Plain):
    def between(self, x):
        if self.training:
            groups = x.view(len(x), 8, 4, *x.shape[2:])
            x = (groups - 0.1 * groups.mean((2, 3, 4), keepdim=True)).flatten(1, 2)
        return x


class Mask(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x):
        return x * x.new_ones(len(x), self.width, 1, 1).bernoulli_(0.8) if self.training else x


class ByAttribute(Plain):
    def __init__(self):
        super().__init__()
        self.mask = Mask(32)

    def between(self, x):
        return self.mask(x)


class Gain(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gain[:, None, None] if self.training else x


class OwnParameter(Plain):
    def __init__(self):
        super().__init__()
        self.gain = Gain(32)

    def between(self, x):
        return self.gain(x)


class Centres(Plain):
    """In training it gives the distances to centres, which are a buffer, as well."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centres", torch.randn(5, 48))

    def forward(self, x):
        y = self.b(self.a(x).relu()).relu().mean((2, 3))
        return (self.head(y), torch.cdist(y, self.centres)) if self.training else self.head(y)


class Renewed(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(32))

    def between(self, x):
        if self.training:
            self.mean.data.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        return x


class Heads(nn.Module):
    """Drops heads in training, by the number that the module keeps."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.embed, self.qkv, self.out, self.head = nn.Conv2d(3, 32, 2, 2), *(nn.Linear(32, n) for n in (96, 32, 5))

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 8)).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT * 0.35).softmax(-1) @ v
        if self.training:
            y = y * torch.ones(1, self.heads, 1, 1).bernoulli_(0.8) / 0.8
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


KINDS = [Literal, Regrouped, ByAttribute, OwnParameter, Centres, Renewed, Heads]


@pytest.mark.parametrize("kind", KINDS)
def test_the_narrowed_model_trains_where_the_dense_one_does(kind):
    torch.manual_seed(0)
    model = kind().eval()
    before = copy.deepcopy(model.state_dict())
    plan = compress.plan(model, images(), "random", ratio=0.4, align=1)
    assert any(row.after < row.before for row in plan.layers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    small = compress.apply(plan, model).train()
    found = small(images(3))
    (found[0] if isinstance(found, tuple) else found).sum().backward()


def test_a_number_that_is_read_in_training_alone_follows_its_width():
    torch.manual_seed(0)
    model = ByAttribute().eval()
    plan = compress.plan(model, images(), "random", ratio=0.4, align=1)
    width = next(row.after for row in plan.layers if row.name == "a:channels")
    assert width < 32
    assert compress.apply(plan, model).mask.width == width


class StochasticDepth(nn.Module):
    def forward(self, x):
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.8) / 0.8 if self.training else x


class Harmless(Plain):
    def __init__(self):
        super().__init__()
        self.depth = StochasticDepth()

    def between(self, x):
        x = self.depth(F.dropout(x, 0.1, self.training))
        return x + 0.1 * torch.randn_like(x) if self.training else x


def test_noise_that_is_right_for_any_width_is_not_looked_at_again():
    found = trace(Harmless().eval(), images())
    assert found.training_steps == []
    assert {group.name for group in build_graph(Harmless().eval(), images()).groups} == {"a:channels", "b:channels"}
    assert trace(Heads().eval(), images()).training_steps  # a width that is a number is


def test_code_of_training_runs_alike_each_time_and_leaves_nothing_behind():
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))
            self.drop, self.norm, self.inner = nn.Dropout(0.5), nn.BatchNorm2d(3), Mask(3)

        def forward(self, x):
            self.seen = self.seen + x.mean((0, 2, 3))
            self.norm.num_batches_tracked.add_(1)
            return self.drop(self.norm(x)) if random.random() < 2 else x, random.random(), torch.rand(2)

    model, modes = Drawing(), [True, False]
    for mode in modes:
        model.train(mode)
        state, buffer = torch.get_rng_state(), model.seen
        plain = random.getstate()
        with watched(model), training_code(model):
            assert [model.training, model.drop.training, model.norm.training, model.inner.training] == [
                True, False, False, True,
            ]  # fmt: skip
            first = model(images())
        with watched(model), training_code(model):
            second = model(images())
        torch.testing.assert_close(first, second)
        assert torch.equal(torch.get_rng_state(), state) and random.getstate() == plain
        assert model.seen is buffer and not buffer.any() and not model.norm.num_batches_tracked
        assert all(module.training is mode for module in model.modules())
