"""Layers that the example does not lead to: other inputs that do are right, and what is never called holds nothing."""

import copy

import pytest
import torch
from torch import nn

import compress


def convolution(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU())


class EarlyExit(nn.Module):
    """Leaves at the first head where the pixels are bright; further stages come after it."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.exit = convolution(3, 20), convolution(20, 24), nn.Linear(24, 5)
        self.b, self.c, self.head = convolution(24, 32), convolution(32, 40), nn.Linear(40, 5)

    def forward(self, x):
        bright = x.mean() > 0
        x = self.a(self.stem(x))
        return self.exit(x.mean((2, 3))) if bright else self.rest(x)

    def rest(self, x):
        return self.head(self.c(self.b(x)).mean((2, 3)))


class Flattened(EarlyExit):
    """What comes after the first exit reads all of its maps as one row."""

    def __init__(self):
        super().__init__()
        self.b, self.c, self.head = nn.Linear(24 * 64, 32), nn.ReLU(), nn.Linear(32, 5)

    def rest(self, x):
        return self.head(self.c(self.b(x.flatten(1))))


class Detour(EarlyExit):
    """Dark images take a way of another width through the middle, and come back."""

    def __init__(self):
        super().__init__()
        self.b, self.c, self.head = convolution(24, 32), convolution(32, 28), nn.Linear(28, 5)
        self.usual = convolution(24, 28)

    def forward(self, x):
        dark = x.mean() < 0
        x = self.a(self.stem(x))
        return self.head((self.c(self.b(x)) if dark else self.usual(x)).mean((2, 3)))


def images(sign):
    return sign * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def silenced(model, plan):
    """Return the dense model with all that the plan removes at zero."""
    model = copy.deepcopy(model)
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, kept in dims.items():
                tensors[name].index_fill_(
                    dim, torch.tensor(sorted(set(range(tensors[name].shape[dim])) - set(kept))), 0
                )
    return model


@pytest.mark.parametrize("kind", [EarlyExit, Flattened, Detour])
def test_inputs_that_lead_to_layers_which_the_example_does_not_reach_are_right(kind):
    torch.manual_seed(0)
    model = kind().eval()
    plan = compress.plan(model, images(1)[:1], "random", ratio=0.4, align=1)
    assert {row.name for row in plan.layers if row.after < row.before} == {"stem.0:channels"}
    reasons = {skip.layer: skip.reason for skip in plan.skipped}
    assert "'b" in reasons["a.0"] and "may read or give it, which no forward pass reached" in reasons["a.0"]
    small, dense = compress.apply(plan, model), silenced(model, plan)
    with torch.no_grad():
        for sign in (1, -1):
            torch.testing.assert_close(small(images(sign)), dense(images(sign)))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.head = convolution(3, 20), convolution(20, 24), nn.Linear(24, 9)

    def features(self, x):
        return self.a(self.stem(x)).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


class OnTop(nn.Module):
    """Takes features of a network whose own head, like a second one of its own, nothing calls."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head, self.old = Backbone(), nn.Linear(24, 5), nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.backbone.features(x))


def test_heads_that_no_code_calls_hold_no_width_back():
    torch.manual_seed(0)
    plan = compress.plan(OnTop().eval(), images(1)[:1], "random", ratio=0.4, align=1)
    assert {row.name: row.after < row.before for row in plan.layers} == {
        "backbone.stem.0:channels": True,
        "backbone.a.0:channels": True,
    }
