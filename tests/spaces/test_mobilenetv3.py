"""The elastic MobileNetV3 space: predicted costs, canonical forms, Once-for-All's codes, resolutions, export."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from compress.core.errors import InputError
from compress.core.meta import without_storage
from evaluators.cost import count_macs, count_params
from spaces.architecture import Architecture
from spaces.mobilenetv3 import MobileNetV3Space
from spaces.registry import create, open_preset

ELASTIC: dict[str, Any] = {"widths": (0.5, 0.9, 1.0, 1.25), "resolutions": (96, 128, 160)}


def open_space(**options: Any) -> MobileNetV3Space:
    space = create("mobilenetv3", options)
    assert isinstance(space, MobileNetV3Space)
    return space


def on_meta(space: MobileNetV3Space, arch: Architecture) -> nn.Module:
    with without_storage():
        return space.build(arch)


@pytest.mark.parametrize(("skeleton", "networks"), [("ofa", 10), ("large", 6), ("small", 6), ("leyolo", 4)])
def test_predicted_cost_is_the_counted_one(skeleton: str, networks: int) -> None:
    space, generator = open_space(skeleton=skeleton, se="searched", **ELASTIC), random.Random(0)
    for _ in range(networks):
        arch = space.sample(generator)
        network, size = on_meta(space, arch), space.input_size(arch)
        counted = count_macs(network, torch.empty(1, 3, size, size, device="meta"))
        assert space.cost(arch) == {"params": count_params(network)[0], "macs": counted}


def test_only_what_can_differ_is_decided() -> None:
    space = open_space(depths=(1, 2), skeleton="tiny")
    assert [decision.name for decision in space.decisions[:5]] == [
        "stage2.depth",
        "stage2.layer1.kernel",
        "stage2.layer1.expand",
        "stage2.layer2.kernel",
        "stage2.layer2.expand",
    ]
    searched = {decision.name for decision in open_space(se="searched", **ELASTIC).decisions}
    assert {"resolution", "stage2.width", "stage6.width", "stage2.layer4.se"} < searched


def test_blocks_beyond_the_depth_are_not_decided() -> None:
    space = open_space()
    small = dict(space.parse({"ks": 3, "e": 3, "d": 2}))
    with pytest.raises(InputError, match=r"stage2\.layer3\.kernel: got 3; .* only where stage2\.depth is 3 or 4"):
        space.check({**small, "stage2.layer3.kernel": 3})
    with pytest.raises(InputError, match=r"stage4\.depth: got 5; allowed 2, 3 or 4"):
        space.check({**small, "stage4.depth": 5})


def test_depth_drops_the_tail_of_a_stage() -> None:
    space = open_space()
    deep = space.parse({"ks": [3, 5, 7, 5] * 5, "e": [6, 4, 3, 6] * 5, "d": 4})
    shallow = space.check({**deep, "stage4.depth": 2}, drop_untaken=True)
    before, after = space.rows(deep).blocks, space.rows(shallow).blocks
    assert after[3] == before[3][:2]
    assert after[4:] == before[4:]


def test_fractional_ratios_that_round_to_the_same_channels_are_one_network() -> None:
    space, arch = open_preset("mobilenetv3", "mobilenetv3-large")
    assert arch is not None  # 2.3 and 2.5 times 16 channels are both 40
    first, second = ({**arch, "stage2.layer1.expand": ratio} for ratio in (2.3, 2.5))
    assert space.check(first) != space.check(second)
    assert space.canonical(space.check(first)) == space.canonical(space.check(second))


@pytest.mark.parametrize("skeleton", ["large", "small"])
def test_canonical_form_is_the_same_network(skeleton: str) -> None:
    space, generator = open_space(skeleton=skeleton, **ELASTIC), random.Random(2)
    for _ in range(100):
        arch = space.sample(generator)
        canonical = space.canonical(arch)
        assert space.rows(canonical) == space.rows(arch)
        assert space.canonical(canonical) == canonical


def test_codes_go_both_ways() -> None:
    space, generator = open_space(se="searched", **ELASTIC), random.Random(3)
    for _ in range(50):
        arch = space.sample(generator)
        code = space.to_code(arch)
        assert (len(code["ks"]), len(code["e"]), len(code["d"]), len(code["r"])) == (20, 20, 5, 1)
        assert space.parse(code) == arch


def test_wrong_codes_say_what_is_allowed() -> None:
    space = open_space()
    with pytest.raises(InputError) as caught:
        space.from_code({"ks": [3] * 19, "d": 4, "r": 128, "kernel": 3})
    assert caught.value.problems == [
        "kernel: unknown key of a code; allowed ks, e, d, w, se, r",
        "ks: got 19 values; allowed one, or 20: stage2.layer1.kernel to stage6.layer4.kernel",
        "e: missing; it holds one value for each of stage2.layer1.expand to stage6.layer4.expand",
        "r: this space does not search the resolution",
    ]
    with pytest.raises(InputError, match=r"stage3\.depth: got 5; allowed 2, 3 or 4"):
        space.from_code({"ks": 3, "e": 3, "d": [2, 5, 2, 2, 2]})
    with pytest.raises(InputError, match="a code is a mapping"):
        space.parse([7, 6, 4])


def test_strides_must_fit_the_skeleton() -> None:
    with pytest.raises(InputError, match="got 3 strides; skeleton small has 6: of the stem, of the first block and"):
        open_space(skeleton="small", strides=(1, 1, 2))
    with pytest.raises(InputError, match=r"option kernels: unknown value; got \[3, 4\]; allowed 3, 5 or 7"):
        open_space(kernels=(3, 4))


def test_small_images_keep_a_map_of_four_pixels() -> None:
    for skeleton in ("ofa", "large", "small", "v2"):
        space = open_space(skeleton=skeleton, dataset="cifar")
        rows = space.layers(space.largest())
        assert rows is not None
        assert (space.default_task.img_size, space.default_task.num_outputs) == (32, 10)
        assert (rows[0].size, rows[-3].size if rows[-2].name == "head" else rows[-2].size) == (32, 4)


def test_the_resolution_is_the_architectures_own() -> None:
    space = open_space(resolutions=(160, 128))
    largest = space.largest()
    assert space.default_task.img_size == 160
    assert space.input_size(largest) == 160
    assert space.input_size(space.check({**largest, "resolution": 128})) == 128
    assert open_space(resolutions=(96,)).default_task.img_size == 96
    assert "resolution" not in open_space(resolutions=(96,)).largest()


def test_options_and_choices_survive_a_file() -> None:
    space = open_space(skeleton="small", **ELASTIC)
    arch = space.sample(random.Random(4))
    content = space.to_dict(arch)
    again = create(content["space"], content["options"])
    assert again.parse(content) == arch
    assert again.count() == space.count()


def test_tiny_networks_are_small() -> None:
    space, arch = open_preset("mobilenetv3", "tiny")
    assert arch is None
    assert space.count() == 74_088
    cost = space.cost(space.check({d.name: max(d.choices, key=float) for d in space.decisions}))
    assert cost["params"] < 100_000 and cost["macs"] < 3.1e6


def test_exported_networks_agree(tmp_path: Path) -> None:
    space, generator = open_space(skeleton="tiny", dataset="cifar", se="searched", widths=(0.5, 1.0)), random.Random(5)
    for _ in range(3):
        network = space.build(space.sample(generator)).eval()
        images, file = torch.randn(2, 3, 32, 32), str(tmp_path / "network.onnx")
        torch.onnx.export(network, (images,), file, dynamo=False, input_names=["input"])
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"input": images.numpy()})
        np.testing.assert_allclose(logits, network(images).detach().numpy(), atol=1e-5)
