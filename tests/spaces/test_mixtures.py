"""Every supernet that mixes choices: what the sum is, where gradients go, what it costs."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.testing.spaces import enliven
from spaces.architecture import Architecture
from spaces.darts.genotype import CELLS, Genotype
from spaces.registry import create
from spaces.supernet import Supernet

CASES: list[tuple[str, dict[str, Any]]] = [
    ("nas_bench_201", {"channels": 4, "cells": 1}),
    ("nas_bench_macro", {"stem": 4, "depths": (2, 2)}),
    ("darts", {"channels": 4, "layers": 4}),
    ("darts", {"channels": 3, "layers": 3, "norm": "search"}),
]


@pytest.fixture(params=CASES, ids=[f"{name}-{options}" for name, options in CASES])
def net(request: pytest.FixtureRequest) -> Iterator[Supernet]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    space = create(*request.param)
    net = space.supernet(space.task(num_outputs=3, in_chans=2, img_size=16))
    enliven(net)
    yield net
    torch.set_default_dtype(torch.float32)


def samples(net: Supernet, count: int) -> list[Architecture]:
    generator = random.Random(0)
    return [net.space.sample(generator) for _ in range(count)]


def images() -> Tensor:
    return torch.randn(4, 2, 16, 16)


def one_hot(net: Supernet, arch: Architecture) -> dict[str, Tensor]:
    """The weights of a mixture that is `arch`; edges that a DARTS cell does not have are none."""
    chosen = dict(arch)
    if net.space.name == "darts":
        genotype = Genotype.from_choices(arch)
        chosen = dict.fromkeys(net.mixtures(), "none") | {
            f"{kind}_{state}_{node}": name
            for kind in CELLS
            for (state, node), name in genotype.operations(kind).items()
        }
    return {
        name: torch.tensor([float(choice == chosen[name]) for choice in choices], requires_grad=True)
        for name, choices in net.mixtures().items()
    }


def uniform(net: Supernet) -> dict[str, Tensor]:
    return {
        name: torch.full((len(choices),), 1 / len(choices), requires_grad=True)
        for name, choices in net.mixtures().items()
    }


def test_one_hot_weights_are_the_architecture_that_they_stand_for(net: Supernet) -> None:
    x = images()
    for arch in samples(net, 4):
        weights = one_hot(net, arch)
        assert net.decode(weights) == arch
        for training in (False, True):
            net.train(training)
            net.mix(weights)
            mixed = net(x)
            net.activate(arch)
            torch.testing.assert_close(mixed, net(x), rtol=1e-9, atol=1e-12)


def test_the_expected_macs_of_one_architecture_are_its_macs(net: Supernet) -> None:
    for arch in samples(net, 4):
        assert net.expected_macs(one_hot(net, arch)).item() == net.space.cost(arch, net.task)["macs"]


def test_expected_macs_are_those_of_architectures_drawn_at_random(net: Supernet) -> None:
    """By the slope: from one architecture to another, the expectation moves as far as the cost."""
    first, second = samples(net, 2)
    start, end = one_hot(net, first), one_hot(net, second)
    macs = net.expected_macs({name: (start[name] + end[name]) / 2 for name in start})
    mean = sum(net.space.cost(arch, net.task)["macs"] for arch in (first, second)) / 2
    assert macs.item() == pytest.approx(mean)
    macs.backward()
    assert sum((start[name].grad * (end[name] - start[name])).sum() for name in start).item() * 2 == pytest.approx(
        net.space.cost(second, net.task)["macs"] - net.space.cost(first, net.task)["macs"]
    )


def test_gradients_of_the_weights_are_the_slope_of_the_output(net: Supernet) -> None:
    x, weights = images(), uniform(net)
    net.eval()
    net.mix(weights)
    net(x).square().sum().backward()
    directions = {name: torch.randn_like(tensor) for name, tensor in weights.items()}
    slope = sum((weights[name].grad * directions[name]).sum() for name in weights)
    ends = []
    for step in (1e-7, -1e-7):
        net.mix({name: weights[name] + step * directions[name] for name in weights})
        ends.append(net(x).square().sum().item())
    assert (ends[0] - ends[1]) / 2e-7 == pytest.approx(slope.item(), rel=1e-4)


def test_a_mixture_can_be_copied(net: Supernet) -> None:
    x, weights = images(), uniform(net)
    net.eval()
    net.mix({name: weight * 2 for name, weight in weights.items()})
    torch.testing.assert_close(copy.deepcopy(net)(x), net(x))


def test_candidates_without_weight_are_not_computed(net: Supernet) -> None:
    """Of the weights of a mixture of two architectures, only what one of the two uses is trained."""
    first, second = samples(net, 2)
    used = set()
    for arch in (first, second):
        net.zero_grad(set_to_none=True)
        net.activate(arch)
        net(images()).square().sum().backward()
        used |= {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    net.zero_grad(set_to_none=True)
    start, end = one_hot(net, first), one_hot(net, second)
    net.mix({name: 0.3 * start[name] + 0.7 * end[name] for name in start})
    net(images()).square().sum().backward()
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert trained == used < dict(net.named_parameters()).keys()
    for name in start:
        idle = (start[name] == 0) & (end[name] == 0)
        gradient = start[name].grad
        if gradient is None:  # nothing is computed on an edge that is none in both
            assert net.space.name == "darts" and start[name][0] == end[name][0] == 1
        else:
            assert bool(idle.any()) and not gradient[idle].any() and gradient.isfinite().all()
