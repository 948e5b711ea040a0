"""Layers that can be left out, widths that shrink, and what becomes of both together."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from compress.core.errors import InputError
from compress.testing.spaces import check_space
from evaluators.cost import count_params
from spaces.n2n import N2NSpace
from spaces.registry import create
from spaces.space import task_of
from spaces.zoo import ModelConfig, build_model

CIFAR = {"source": "builtin", "name": "cifar_resnet20"}
VGG = {"source": "python", "name": "small_vgg:build", "input_size": (3, 16, 16)}
BOTTLENECK = {"source": "timm", "name": "resnet26", "kwargs": {"channels": [16, 24, 32, 40], "num_classes": 5}}


@cache
def opened(options: str) -> N2NSpace:
    space = create("n2n", json.loads(options))
    assert isinstance(space, N2NSpace)
    return space


def n2n(model: dict[str, Any], **options: Any) -> N2NSpace:
    return opened(json.dumps({"model": model, **options}))


def left(space: N2NSpace, **changes: Any) -> nn.Module:
    """The network of the widest architecture with some choices changed; what is no longer decided is left out."""
    given = {name.replace("__", "."): choice for name, choice in changes.items()}
    return space.build(space.check({**space.widest(), **given}, drop_untaken=True))


def convolutions(network: nn.Module) -> dict[str, tuple[int, int]]:
    parts = network.named_modules()
    return {name: (part.in_channels, part.out_channels) for name, part in parts if isinstance(part, nn.Conv2d)}


def test_layers_that_keep_the_shape_may_go_but_not_the_first() -> None:
    keeps = {name.removesuffix(".keep") for name in n2n(CIFAR).widest() if name.endswith(".keep")}
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    strided = {"layer2.0.conv1", "layer3.0.conv1"}
    assert keeps == {f"{block}.{conv}" for block in blocks for conv in ("conv1", "conv2")} - strided


def test_layers_of_a_sequential_network_may_go() -> None:
    assert [name for name in n2n(VGG).widest() if name.endswith(".keep")] == ["3.keep", "9.keep"]


def test_a_removed_layer_makes_the_widths_before_and_after_it_one() -> None:
    network = left(n2n(VGG), **{"3__keep": False, "0__width": 10, "9__keep": False, "6__width": 12})
    assert convolutions(network) == {"0": (3, 10), "6": (10, 12)}
    assert not isinstance(network[4], nn.BatchNorm2d)
    assert network[-1].in_features == 12


def test_the_first_layer_of_a_residual_branch_may_go_alone() -> None:
    space = n2n({**CIFAR, "kwargs": {"shortcut": "B"}})
    network = left(space, **{"layer1__1__conv1__keep": False, "conv1__width": 10})
    assert "layer1.1.conv1" not in convolutions(network)
    assert convolutions(network)["layer1.1.conv2"] == (10, 10)


def test_a_block_goes_with_the_last_of_its_layers() -> None:
    space = n2n(CIFAR)
    network = left(space, layer1__1__conv1__keep=False, layer1__1__conv2__keep=False)
    images = torch.randn(2, 3, 32, 32)
    block = network.get_submodule("layer1.1")
    assert block(images) is images


def test_a_bottleneck_goes_whole_or_loses_its_middle() -> None:
    space = n2n({**BOTTLENECK, "input_size": (3, 32, 32)})
    keeps = [name for name in space.widest() if name.startswith("layer2.1.") and name.endswith("keep")]
    assert keeps == ["layer2.1.keep", "layer2.1.conv2.keep"]
    gone = space.check({**space.widest(), "layer2.1.keep": False}, drop_untaken=True)
    assert not [name for name in gone if name.startswith("layer2.1.conv")]
    assert not any(name.startswith("layer2.1") for name in convolutions(space.build(gone)))


@pytest.mark.parametrize("model", [VGG, {**BOTTLENECK, "input_size": (3, 32, 32)}], ids=["sequential", "bottleneck"])
def test_networks_cost_what_is_foretold_and_learn(model: dict[str, Any]) -> None:
    space = n2n(model)
    check_space(space, task=space.default_task)


def test_students_of_a_model_with_weights_begin_with_new_ones(tmp_path: Path) -> None:
    built = build_model(ModelConfig.model_validate({**VGG, "kwargs": {"num_classes": 5}}), seed=7).module
    save_file(built.state_dict(), tmp_path / "teacher.safetensors")
    space = n2n({**VGG, "checkpoint": str(tmp_path / "teacher.safetensors")})
    torch.manual_seed(0)
    one, other = space.build(space.widest()), space.build(space.widest())
    assert count_params(one) == count_params(built)
    weights = [network[0].weight for network in (built, one, other)]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_an_activation_in_place_leaves_the_shortcut_alone() -> None:
    space = n2n({"source": "torchvision", "name": "resnet18", "input_size": (3, 32, 32)})
    network = left(space, layer1__0__conv1__keep=False)
    stream = torch.randn(2, 64, 8, 8)
    block = network.get_submodule("layer1.0")
    expected = F.relu(block.bn2(block.conv2(F.relu(stream))) + stream)
    torch.testing.assert_close(block(stream.clone()), expected)


def test_factors_stand_for_the_nearest_width_and_a_floor_holds() -> None:
    space = n2n(CIFAR, factors=[0.25, 0.5, 1.0])
    width = "layer3.1.conv1.width"
    assert [space.shrunk(width, factor) for factor in (0.25, 0.5, 1.0)] == [16, 32, 64]
    assert [space.shrunk("layer1.0.conv1.width", factor) for factor in (0.25, 0.5, 1.0)] == [10, 10, 16]


def test_the_state_tells_layers_and_their_places_in_blocks() -> None:
    steps = {step.link.name: step for step in n2n(CIFAR).steps}
    link = steps["layer3.1.conv2"].link
    assert (link.kind, link.kernel, link.stride, link.out_channels, link.padding) == (1, 3, 1, 64, 1)
    assert (link.skip_start, link.skip_end) == (2, 2)  # after it a norm and the shortcut
    assert all(0 <= value <= 1 for step in steps.values() for value in step.link.state)
    assert steps["linear"].keep is None and steps["conv1"].keep is None


def test_other_sizes_and_classes_are_built_from_the_same_decisions() -> None:
    space = n2n(CIFAR)
    arch = space.widest()
    assert space.build(arch, task_of(7, 1, 16))(torch.randn(2, 1, 16, 16)).shape == (2, 7)


def test_a_model_that_leaves_nothing_to_decide_is_refused() -> None:
    with pytest.raises(InputError, match=r"space n2n: .* leaves nothing to decide with widths \[1.0\]"):
        create("n2n", {"model": VGG, "factors": [1.0]})
