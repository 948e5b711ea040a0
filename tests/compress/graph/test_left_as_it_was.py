"""Planning changes nothing of a model, and a narrowed one holds nothing that passes of the wide one have computed."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import compress
from compress.graph.plan import Plan
from evaluators.cost import count_macs


class Net(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 32, 3, padding=1), nn.Linear(32, 5)

    def mixed(self, x):
        """Return the first features as the second convolution sees them."""
        return x

    def forward(self, x):
        """Return (N, 5) of (N, 3, H, W)."""
        x = self.b(self.mixed(self.a(x).relu())).relu()
        return self.head((x * self.mask(*x.shape[2:])).mean((2, 3)))

    def mask(self, height, width):
        """Return what pixels count."""
        return 1.0


class Remembering(Net):
    """Keeps the last features in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(24))
        self.register_buffer("calls", torch.tensor(0))

    def mixed(self, x):
        y = x + 0.5 * self.last[:, None, None]
        self.last.copy_(x.mean((0, 2, 3)).detach())
        self.calls += 1
        return y


class Estimating(Net):
    """Goes by the batch and renews its statistics in evaluation too."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(24)

    def mixed(self, x):
        norm = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True)


class Initialised(Net):
    """Its first batch decides what a scale is."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(24, 1, 1))
        self.register_buffer("ready", torch.tensor(False))

    def mixed(self, x):
        if not self.ready:
            self.scale.data.copy_(1 / (x.detach().std((0, 2, 3))[:, None, None] + 1e-6))
            self.ready.fill_(True)
        return x * self.scale


class Late(Net):
    """Enters a buffer at the first call."""

    def mask(self, height, width):
        if not hasattr(self, "window"):
            self.register_buffer("window", torch.ones(height, width).tril())
        return self.window


class BySize(Net):
    """Its mask of pixels, made by a small network of coordinates, is kept for each size."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.kept = nn.Linear(2, 40), nn.Linear(40, 1), {}

    def mask(self, height, width):
        if self.training or (height, width) not in self.kept:
            at = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
            grid = torch.stack([each.expand(height, width) for each in at], -1).to(self.up.weight.dtype)
            self.kept[height, width] = self.down(self.up(grid).relu())[..., 0].sigmoid()
        return self.kept[height, width]


class Fused(Net):
    """A weight that is made to have rows of length one is kept once it was used."""

    def __init__(self):
        super().__init__()
        self.fused = None

    def mixed(self, x):
        if self.fused is None:
            self.fused = self.a.weight.flatten(1) / self.a.weight.flatten(1).norm()
        return x * self.fused.sum(1)[:, None, None]


class Listed(Net):
    """A scale of its channels, made of their weights, is kept in a list."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def mixed(self, x):
        if not self.kept:
            self.kept.append(self.a.weight.flatten(1).norm(dim=1))
        return x * self.kept[0][:, None, None]


ALL = (Remembering, Estimating, Initialised, Late, BySize, Fused, Listed)


def image(samples=1, seed=0, size=8):
    """Return (N, 3, H, W)."""
    return torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(seed))


def pruned(model, **options):
    """Return a plan of half the MACs and the narrowed model."""
    plan = compress.plan(model, image(), budget={"macs": 0.5}, align=1, **{"criterion": "random", **options})
    return plan, compress.apply(plan, model)


def held(model):
    """Return all that a model has under a name, with the values of tensors."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return state, {name: copy.copy(value) for name, value in vars(model).items() if not name.startswith("_")}


def assert_same(found, expected):
    assert [list(each) for each in found] == [list(each) for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert all(
            torch.equal(one[name], other[name]) if torch.is_tensor(one[name]) else one[name] == other[name]
            for name in one
        )


def assert_computes_by_its_weights(small, plan, kind):
    """Hold a narrowed model against one that never ran and was given the same weights."""
    torch.manual_seed(9)
    plan = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    again = compress.apply(plan, kind().eval())
    again.load_state_dict(small.state_dict())
    for seed, size in ((1, 8), (2, 12)):
        x = image(2, seed, size) if kind is not Late else image(2, seed)
        torch.testing.assert_close(small(x), again(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ALL)
def test_planning_leaves_the_model_as_it_was(kind):
    model = kind().eval()
    before = held(model)
    plan, small = pruned(model)
    count_macs(model, image())
    assert_same(held(model), before)
    assert_computes_by_its_weights(small, plan, kind)


@pytest.mark.parametrize("kind", ALL)
def test_scoring_on_data_leaves_the_model_as_it_was(kind):
    model = kind().eval()
    before = held(model)
    batches = [(image(12, seed), torch.arange(12) % 5) for seed in (3, 4)]
    plan, small = pruned(model, criterion="taylor", batches=batches)
    assert_same(held(model), before)
    assert_computes_by_its_weights(small, plan, kind)


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("kind", [BySize, Fused, Listed])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_what_the_user_had_run_before_is_computed_anew_by_the_narrowed_model(kind, size, with_gradient):
    model = kind().eval()
    with torch.set_grad_enabled(with_gradient):
        model(image(1, 5, size))
    kept = model.fused if kind is Fused else model.kept
    plan, small = pruned(model)
    assert {row.name for row in plan.layers} >= {"a:channels", "b:channels"}
    assert (model.fused if kind is Fused else model.kept) is kept and len(kept)
    assert kind is not BySize or list(kept) == [(size, size)]
    assert_computes_by_its_weights(small, plan, kind)


def test_a_model_that_was_run_between_plan_and_narrowing_gives_no_stale_values():
    model = BySize().eval()
    plan = compress.plan(model, image(), "random", budget={"macs": 0.5}, align=1)
    model(image())
    assert_computes_by_its_weights(compress.apply(plan, model), plan, BySize)


class Constant(Net):
    """Holds a tensor that it could not make again, and one that decides what it gives."""

    def __init__(self):
        super().__init__()
        self.gain, self.state = torch.linspace(0.5, 1.5, 24)[:, None, None], None

    def mixed(self, x):
        x = x * self.gain
        y = x if self.state is None else x + self.state
        self.state = x.detach().mean((2, 3), keepdim=True)
        return y


def test_what_a_model_does_not_make_again_stays():
    model = Constant().eval()
    with torch.no_grad():
        model(image(1, 5))
    gain, state = model.gain, model.state
    try:
        plan, small = pruned(model)
        assert torch.equal(small.gain, gain)
        assert torch.equal(small.state, state)
        assert not {"gain", "state"} & set(plan.attributes.get("", {}))
    finally:
        assert model.gain is gain
        assert model.state is state
