"""NASNet's supernet against stand-alone networks with the weights that they inherit."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.testing.spaces import enliven
from spaces.nasnet import NASNetSpace
from spaces.nasnet.supernet import NASNetSupernet
from spaces.registry import create
from spaces.supernet import Supernet


def make(img_size: int = 16, **options: Any) -> tuple[NASNetSpace, NASNetSupernet]:
    torch.manual_seed(0)
    space = create("nasnet", {"cells_per_stage": 1, "filters": 4, **options})
    assert isinstance(space, NASNetSpace)
    supernet = space.supernet(space.task(img_size=img_size))
    assert isinstance(supernet, NASNetSupernet)
    enliven(supernet)
    return space, supernet


@pytest.fixture(scope="module")
def made() -> tuple[NASNetSpace, NASNetSupernet]:
    return make()


def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        answer = network(images)
    return list(answer) if isinstance(answer, tuple) else [answer]


VARIANTS: list[tuple[dict[str, Any], int, int]] = [
    ({}, 16, 12),
    ({"cells_per_stage": 2, "stem_channels": 4}, 13, 3),
    ({"stem": "imagenet", "filters": 12, "stem_channels": 6, "wiring": "large"}, 75, 3),
    ({"auxiliary": True, "concat": {"normal": [0, 4, 6], "reduction": [1, 3]}}, 32, 3),
]


@pytest.mark.parametrize(("options", "size", "count"), VARIANTS)
def test_active_supernet_equals_what_is_cut_out(options: dict[str, Any], size: int, count: int) -> None:
    space, supernet = make(size, **options)
    generator, images = random.Random(0), torch.randn(3, 3, size, size)
    archs = [space.sample(generator) for _ in range(count)]
    for training in (False, True):
        supernet.train(training)
        for arch in archs:
            supernet.activate(arch)
            alone = supernet.extract()
            assert alone.training == training
            for ours, theirs in zip(outputs(supernet, images), outputs(alone, images), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_cutting_out_another_leaves_the_active_one_alone(made: tuple[NASNetSpace, NASNetSupernet]) -> None:
    space, supernet = made
    generator, images = random.Random(1), torch.randn(2, 3, 16, 16)
    first, second = space.sample(generator), space.sample(generator)
    supernet.eval().activate(first)
    before = outputs(supernet, images)[0]
    other = outputs(supernet.extract(second), images)[0]
    assert torch.equal(outputs(supernet, images)[0], before)
    supernet.activate(second)
    torch.testing.assert_close(outputs(supernet, images)[0], other, rtol=0, atol=1e-5)
    assert not torch.allclose(before, other)


def test_only_the_active_path_learns(made: tuple[NASNetSpace, NASNetSupernet]) -> None:
    space, supernet = made
    supernet.train().zero_grad(set_to_none=True)
    arch = space.sample(random.Random(2))
    supernet.activate(arch)
    F.cross_entropy(supernet(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
    learnt = sum(each.numel() for each in supernet.parameters() if each.grad is not None)
    assert learnt == space.cost(arch, space.task(img_size=16))["params"]
    supernet.zero_grad(set_to_none=True)


def test_weights_are_shared_over_inputs_and_strides(made: tuple[NASNetSpace, NASNetSupernet]) -> None:
    space, supernet = made
    arch = dict(space.sample(random.Random(3)))
    arch |= {"reduction.block0.combine": "add", "reduction.block1.op1": "sep_conv_5x5"}
    one = space.check(arch | {"reduction.block1.input1": 0})  # stride 2
    two = space.check(arch | {"reduction.block1.input1": 2})  # stride 1
    name = "cells.reduction1.blocks.block1.op1.first.depthwise.weight"
    states = [supernet.inherited(each)[name] for each in (one, two)]
    assert states[0].data_ptr() == states[1].data_ptr()


def test_every_parameter_exists_before_training_and_survives_it(made: tuple[NASNetSpace, NASNetSupernet]) -> None:
    space, supernet = made
    before = [name for name, _ in supernet.named_parameters()]
    generator = random.Random(4)
    for _ in range(5):
        supernet.activate(space.sample(generator))
    assert [name for name, _ in supernet.named_parameters()] == before
    assert not any(name.startswith("_network") for name in supernet.state_dict())


def test_supernet_can_be_copied_and_reloaded(made: tuple[NASNetSpace, NASNetSupernet]) -> None:
    space, supernet = made
    arch, images = space.sample(random.Random(5)), torch.randn(2, 3, 16, 16)
    supernet.eval().activate(arch)
    twin = copy.deepcopy(supernet)
    assert torch.equal(outputs(twin, images)[0], outputs(supernet, images)[0])
    fresh: Supernet = space.supernet(space.task(img_size=16))
    fresh.load_state_dict(supernet.state_dict())
    fresh.eval().activate(arch)
    assert torch.equal(outputs(fresh, images)[0], outputs(supernet, images)[0])


def test_forward_needs_an_active_architecture() -> None:
    space = create("nasnet", {"cells_per_stage": 1, "filters": 2, "operations": ["conv_1x1"]})
    supernet = space.supernet()
    with pytest.raises(ValueError, match="activate an architecture first"):
        supernet(torch.zeros(1, 3, 32, 32))


def test_drop_path_of_the_supernet_keeps_its_progress() -> None:
    space, supernet = make(drop_path_keep=0.2, operations=["conv_1x1"], combines=["add"])
    images, generator = torch.randn(8, 3, 16, 16), random.Random(0)
    supernet.train().activate(space.sample(generator))
    supernet.set_training_progress(1.0)
    supernet.activate(space.sample(generator))
    one, two = outputs(supernet, images)[0], outputs(supernet, images)[0]
    assert not torch.equal(one, two)
    supernet.set_training_progress(0.0)
    assert torch.equal(outputs(supernet, images)[0], outputs(supernet, images)[0])
