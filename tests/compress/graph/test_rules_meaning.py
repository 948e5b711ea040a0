"""Axes whose positions or number mean something stay whole; normalised ones are marked; nothing unknown goes unseen."""

import pytest
import torch
import torchvision.ops as ops
from timm.layers import StdConv2d
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from compress.core.errors import InputError
from compress.graph import axes
from compress.graph.build import build_graph
from compress.graph.rules import RULES
from compress.graph.tracer import trace


class Between(nn.Module):
    """A convolution, an operation on its 16 channels, and another convolution."""

    def __init__(self, operation):
        super().__init__()
        self.a, self.operation, self.b = nn.Conv2d(3, 16, 3, padding=1), operation, nn.Conv2d(16, 8, 1)

    def forward(self, x):
        return self.b(self.operation(self.a(x)))


def pixels(x):
    return x.flatten(2)


def spatial_gate(x):
    return x * torch.cat([x.mean(1, keepdim=True), x.sum(1, keepdim=True)], 1).mean(1, keepdim=True).sigmoid()


WHOLE = {
    "pooled along": (lambda x: x + F.adaptive_max_pool1d(pixels(x).mT, 8).mT.mean() * 0, "pooled"),
    "averaged along": (lambda x: x + F.avg_pool1d(pixels(x).mT, 2).mean() * 0, "pooled"),
    "resized along": (lambda x: x * F.interpolate(pixels(x).mT, size=5).mean(), "resized"),
    "convolved along": (lambda x: x * F.conv1d(pixels(x).mean(2)[:, None], torch.ones(1, 1, 3)).mean(), "convolved"),
    "local response": (nn.LocalResponseNorm(5), "padded"),
    "windows": (lambda x: x * x.unfold(1, 4, 2).mean(), "windows"),
    "unfold": (lambda x: x * F.unfold(pixels(x)[:, None], (3, 1)).mean(), "windows"),
    "largest": (lambda x: x * x.amax(1, keepdim=True), "amax is taken over it"),
    "position of the largest": (lambda x: x * x.argmax(1, keepdim=True), "argmax"),
    "max with a dimension": (lambda x: x * x.max(1, keepdim=True)[0], "max is taken"),
    "product": (lambda x: x * x.prod(1, keepdim=True), "prod"),
    "log of the sum of exponentials": (lambda x: x * x.logsumexp(1, keepdim=True), "logsumexp"),
    "sorted": (lambda x: x.sort(1)[0], "sort"),
    "ranked": (lambda x: x * x.topk(3, 1)[0].sum(1, keepdim=True), "ranked"),
    "running sum": (lambda x: x.cumsum(1), "running sum"),
    "running extreme": (lambda x: x.cummax(1)[0], "running sum"),
    "softmax": (lambda x: x.softmax(1), "softmax"),
    "rolled": (lambda x: x.roll(3, 1), "change places"),
    "rolled, flat": (lambda x: x.roll(3), "change places"),
    "flipped": (lambda x: x.flip(1), "change places"),
    "transformed": (lambda x: x * torch.fft.rfft(x, dim=1).abs().mean(), "Fourier"),
    "uneven parts": (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), "uneven"),
    "mean as a gate": (spatial_gate, "a mean is taken"),
    "mean as an output": (lambda x: x + x.mean(1, keepdim=True), "a mean is taken"),
    "deviation as a scale": (lambda x: x * x.std(1, keepdim=True), "a mean is taken"),
    "picked": (lambda x: x * x[:, [1, 4]].sum(), "picked"),
    "placed": (lambda x: torch.zeros_like(x).index_add(1, torch.arange(16) // 2, x), "picked"),
    "every second of some": (lambda x: x * x[:, 1:9:2].sum(), "n-th"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_an_axis_whose_positions_or_number_mean_something_stays_whole_and_says_why(kind):
    operation, reason = WHOLE[kind]
    graph = build_graph(Between(operation).eval(), torch.randn(1, 3, 8, 8))
    assert not any(group.name.startswith("a:") for group in graph.groups)
    assert reason in next(skip.reason for skip in graph.skipped if skip.layer == "a")


def written_out(x):
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


def response(x):
    length = x.norm(dim=(2, 3), keepdim=True)
    return x * length / (length.mean(1, keepdim=True) + 1e-6)


NORMALISED = {
    "layer norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2),
    "group norm": lambda x: F.group_norm(x, 4),
    "root mean square": lambda x: F.rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2),
    "root mean square written out": lambda x: x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt(),
    "layer norm written out": written_out,
    "global response": response,
    "threshold on a mean": lambda x: x * (x.mean(1, keepdim=True) > 0),
}


@pytest.mark.parametrize("kind", NORMALISED)
def test_a_width_that_is_normalised_over_may_be_narrowed_and_is_marked(kind):
    model, x = Between(NORMALISED[kind]).eval(), torch.randn(1, 3, 8, 8)
    assert any("normalised" in axis.marks for axis in axes.axes_of(trace(model, x).tensors["a.weight"][0]))
    assert any(group.name.startswith("a:") for group in build_graph(model, x).groups)


class Directions(nn.Module):
    """A linear layer whose columns have length 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 8))

    def forward(self, x):
        return (x.permute(0, 2, 3, 1) @ (self.weight / self.weight.norm(dim=0))).permute(0, 3, 1, 2)


@pytest.mark.parametrize("wrap", [StdConv2d, Directions, weight_norm, spectral_norm])
def test_weights_that_are_scaled_as_a_whole_are_normalised_over_their_inputs(wrap):
    middle = {Directions: Directions, StdConv2d: lambda: StdConv2d(12, 8, 3)}.get(
        wrap, lambda: wrap(nn.Conv2d(12, 8, 3))
    )
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), middle(), nn.Conv2d(8, 4, 1)).eval()
    found = trace(model, torch.randn(1, 3, 8, 8))
    (axis,) = axes.axes_of(found.tensors["0.weight"][0])
    assert "normalised" in axis.marks and axis.frozen is None
    assert all(axis.frozen is None for axis in axes.axes_of(found.tensors["3.weight"][1]))


def test_a_mean_that_nothing_uses_keeps_nothing():
    model = Between(lambda x: (x.mean(1) + 1, x)[1]).eval()
    assert any(group.name.startswith("a:") for group in build_graph(model, torch.randn(1, 3, 8, 8)).groups)


def test_nothing_found_is_no_reason_to_fail():
    def nothing(x):
        scores = pixels(x).sum(1)[0]
        found = torch.where(scores > 1e9)[0]
        boxes = torch.zeros(len(found), 4)
        best = scores[found].topk(0)[1]
        return (
            x + torch.cat([boxes[best].reshape(-1, 2, 2).flatten(1), boxes[ops.nms(boxes, scores[found], 0.5)]]).sum()
        )

    build_graph(Between(nothing).eval(), torch.randn(1, 3, 8, 8))


def test_a_failing_rule_makes_an_unknown_operation_outside_of_tests(monkeypatch):
    def fails(*_):
        raise ValueError("no")

    monkeypatch.setitem(RULES, "relu", fails)
    model, x = Between(torch.relu).eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(InputError, match="no"):
        build_graph(model, x)
    monkeypatch.setattr("compress.graph.tracer.STRICT", False)
    assert "feeds the operation relu" in next(s.reason for s in build_graph(model, x).skipped if s.layer == "a")
