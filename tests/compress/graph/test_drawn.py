"""What is drawn at random behind a shape that depends on values hides no mistake either."""

import pytest
import torch
from torch import nn

import compress
from tests.compress.graph.test_exactness import silenced, whole


class Picked(nn.Module):
    """Pixels are picked by a score of their features; then noise comes on them, then a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.pick = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(32, 1)
        self.b, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x):
        """Return (N, 5) of (N, 3, H, W)."""
        x = self.a(x).permute(0, 2, 3, 1)
        return self.head(torch.stack([self.mixed(self.noisy(each[self.pick(each)[..., 0] > 0])) for each in x]))

    def noisy(self, x):
        """Return pixels (n, C) with noise on each."""
        return x * (1 + 0.5 * torch.randn(len(x), 1, dtype=x.dtype))

    def mixed(self, x):
        """Return the sum over pixels of hidden units."""
        return self.b(x).relu().sum(0)


class Scaled(Picked):
    """Features are divided by what their width says."""

    def mixed(self, x):
        """Return the sum over pixels of hidden units."""
        return self.b(x / x.shape[-1] ** 0.5).relu().sum(0)


class OverChannels(Picked):
    """The noise has the width of the channels."""

    def noisy(self, x):
        """Return pixels (n, C) with noise on each number."""
        return x + 0.5 * torch.randn_like(x)


class Weighted(Picked):
    """What is drawn depends on what is computed before."""

    def mixed(self, x):
        """Return the sum over some pixels."""
        kept = torch.bernoulli((x.sum(-1) / x.shape[-1]).sigmoid())
        return self.b(x).relu().mul(kept[:, None]).sum(0)


def planned(kind):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(1, 3, 8, 8)
    plan = compress.plan(model, x, "random", ratio=0.4, align=1)
    return model, x, plan


def assert_same_draws(model, x, plan):
    results = []
    for each in (silenced(model, plan), compress.apply(plan, model)):
        torch.manual_seed(3)
        results.append(each.double()(x.double()))
    torch.testing.assert_close(*results)


def test_what_is_right_behind_a_draw_is_narrowed():
    model, x, plan = planned(Picked)
    assert {row.name for row in plan.layers if row.after < row.before} == {"a:channels", "b:mlp"}
    assert_same_draws(model, x, plan)


WHOLE = {Scaled: "the output is off", OverChannels: "randn_like draws", Weighted: "bernoulli draws other numbers"}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_wrong_or_cannot_be_compared_behind_a_draw_stays_whole(kind):
    model, x, plan = planned(kind)
    assert WHOLE[kind] in whole(plan)["a"]
    assert not any(name.startswith("a.") for name in plan.kept)
    assert_same_draws(model, x, plan)
