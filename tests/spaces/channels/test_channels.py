from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from channel_cases import CIFAR, MODELS, SMALL, VIT, channels, images, samples
from safetensors.torch import save_file

from compress.bundle import open_model
from compress.core.errors import InputError
from compress.core.meta import without_storage
from compress.graph.apply import apply
from compress.prune.narrow import shrunk
from evaluators.cost import count_macs, count_params
from spaces.registry import create, open_preset
from spaces.zoo import ModelConfig, build_model

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# What is decided.


def test_every_width_of_a_residual_network_is_a_decision_named_after_its_layer() -> None:
    space = channels(CIFAR)
    assert [d.name for d in space.decisions][:2] == ["layer1.0.conv1.width", "layer1.1.conv1.width"]
    assert space.decisions[0].choices == (5, 6, 8, 10, 11, 13, 14, 16)
    assert space.decisions[8].choices == (19, 26, 32, 38, 45, 51, 58, 64)
    assert space.count() == 8**9


def test_tied_widths_are_one_decision() -> None:
    space = channels(MODELS["cifar_resnet20 with projections"])
    streams = [d.name for d in space.decisions if not d.name.startswith("layer") or "conv1" not in d.name]
    assert streams == ["conv1.width", "layer2.0.conv2.width", "layer3.0.conv2.width"]
    built = space.build({**space.widest(), "conv1.width": 8})
    assert {built.conv1.out_channels, built.layer1[2].conv2.out_channels, built.layer2[0].conv1.in_channels} == {8}


def test_heads_their_width_and_hidden_units_of_a_transformer_are_decisions() -> None:
    space = channels(VIT, widths=[0.5, 1.0])
    block = {d.name: d.choices for d in space.decisions if d.name.startswith("blocks.1")}
    assert block == {
        "blocks.1.attn.qkv.heads": (2, 3),
        "blocks.1.attn.qkv.head_dim": (4, 8),
        "blocks.1.mlp.fc1.width": (48, 96),
    }
    built = space.build({**space.widest(), "blocks.1.attn.qkv.heads": 2, "blocks.1.attn.qkv.head_dim": 4})
    assert built.blocks[1].attn.num_heads == 2 and built.blocks[1].attn.qkv.out_features == 3 * 2 * 4


def test_widths_are_multiples_of_align_and_not_below_min_width() -> None:
    space = channels(CIFAR, align=8, min_width=16)
    assert {d.choices for d in space.decisions} == {(16, 24, 32), (16, 24, 32, 40, 48, 56, 64)}
    assert not any(d.name.startswith("layer1") for d in space.decisions)  # 16 channels leave no choice


def test_include_and_exclude_choose_the_layers() -> None:
    space = channels(CIFAR, depth=True, include=["layer1.*", "layer2.*"], exclude=["layer2.0*", "layer3.*"])
    assert [d.name for d in space.decisions] == [
        "layer1.0.conv1.width", "layer1.depth", "layer1.1.conv1.width", "layer1.2.conv1.width",
        "layer2.depth", "layer2.1.conv1.width", "layer2.2.conv1.width",
    ]  # fmt: skip


def test_depth_counts_the_blocks_of_a_stage_and_drops_the_last_ones() -> None:
    space = channels(CIFAR, depth=True, widths=[1.0])
    assert [(d.name, d.choices) for d in space.decisions] == [(f"layer{i}.depth", (1, 2, 3)) for i in (1, 2, 3)]
    built = space.build({"layer1.depth": 1, "layer2.depth": 2, "layer3.depth": 3})
    left = {name.rpartition(".conv1")[0] for name in built.state_dict() if name.endswith("conv1.weight")} - {""}
    assert left == {"layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer3.2"}


def test_stages_are_found_where_all_blocks_are_siblings() -> None:
    model = {"source": "torchvision", "name": "mobilenet_v2", "input_size": SMALL}
    space = channels(model, depth=True, widths=[1.0])
    assert [(d.name, len(d.choices)) for d in space.decisions] == [
        ("features.2.depth", 2), ("features.4.depth", 3), ("features.7.depth", 4), ("features.11.depth", 3),
        ("features.14.depth", 3),
    ]  # fmt: skip


def test_widths_of_blocks_that_are_left_out_are_not_decided() -> None:
    space = channels(VIT, depth=True)
    arch = space.check({**space.widest(), "blocks.depth": 1}, drop_untaken=True)
    assert not any(name.startswith("blocks.1") for name in arch)
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.fc1\.width: got 96; .* taken only where blocks\.depth is 2"):
        space.check({**arch, "blocks.1.mlp.fc1.width": 96})


def test_presets_open() -> None:
    assert len(open_preset("channels", "resnet56")[0].decisions) == 27 + 3


# What networks cost and are.


@every_model
def test_predicted_cost_is_that_of_the_built_network(name: str) -> None:
    space = channels(MODELS[name], depth=True)
    for arch in samples(space, 15 if name == "cifar_resnet20" else 4):
        with without_storage():
            built = space.build(arch).eval()
            counted = {"params": count_params(built)[0], "macs": count_macs(built, images(space))}
        assert space.cost(arch) == counted


def test_rows_tell_channels_size_and_stride() -> None:
    space = channels(MODELS["mobilenetv2"])
    rows = {row.name: row for row in space.layers({**space.widest(), "conv_head.width": 384}) or []}
    assert (rows["conv_stem"].size, rows["conv_stem"].stride, rows["conv_stem"].out_channels) == (16, 2, 16)
    assert (rows["conv_head"].out_channels, rows["conv_head"].size, rows["conv_head"].operation) == (384, 1, "conv k1")
    assert rows["blocks.1.0.conv_dw"].operation == "dwconv k3" and rows["blocks.1.0.conv_dw"].stride == 2
    assert rows["classifier"].out_channels == 7


def test_costs_follow_the_task() -> None:
    space = channels(CIFAR)
    (arch,) = samples(space, 1)
    whole, small = space.cost(arch), space.cost(arch, space.task(num_outputs=3, img_size=16))
    assert small["params"] == whole["params"] - 7 * 65
    assert count_macs(space.build(arch, space.task(3, 3, 16)), torch.randn(1, 3, 16, 16)) == small["macs"]


@every_model
def test_full_widths_are_the_base_model(name: str, tmp_path: Path) -> None:
    whole = build_model(ModelConfig(**MODELS[name]), seed=3).module
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    space = channels({**MODELS[name], "checkpoint": str(tmp_path / "weights.safetensors")}, depth=True)
    built = space.build(space.widest())
    assert repr(built.eval()) == repr(whole)
    x = images(space)
    assert torch.equal(built(x), whole(x))


def test_networks_keep_the_first_units_of_trained_weights(tmp_path: Path) -> None:
    whole = build_model(ModelConfig(**CIFAR), seed=3).module
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    space = channels({**CIFAR, "checkpoint": str(tmp_path / "weights.safetensors")})
    built = space.build({**space.widest(), "layer2.1.conv1.width": 10}).state_dict()
    assert torch.equal(built["layer2.1.conv1.weight"], whole.state_dict()["layer2.1.conv1.weight"][:10])
    assert torch.equal(built["layer2.1.conv2.weight"], whole.state_dict()["layer2.1.conv2.weight"][:, :10])


def test_untrained_networks_start_from_new_weights() -> None:
    space = channels(CIFAR)
    first, second = space.build(space.widest()), space.build(space.widest())
    assert not torch.equal(first.conv1.weight, second.conv1.weight)
    torch.manual_seed(0)
    assert torch.equal(space.build(space.widest()).conv1.weight, first.conv1.weight)


def test_a_ranking_keeps_the_best_units_instead() -> None:
    space = channels(CIFAR)
    arch = space.check({**space.widest(), "layer1.0.conv1.width": 6})
    ranking = space.ranking("magnitude")
    best = ranking.scores["layer1.0.conv1:channels"].topk(6).indices.sort().values
    plan = space.plan_of(arch, ranking)
    assert plan.kept["layer1.0.conv1.weight"][0] == tuple(best.tolist())
    assert space.plan_of(arch).kept["layer1.0.conv1.weight"][0] == tuple(range(6))
    assert plan.macs[1] == space.cost(arch)["macs"]


def test_a_bundle_can_be_the_model(tmp_path: Path) -> None:
    space = channels(CIFAR)
    arch = space.check({**space.widest(), "layer1.0.conv1.width": 8})
    bundle = open_model(ModelConfig(**CIFAR)).bundle
    plan = space.plan_of(arch)
    shrunk(bundle, plan, apply(plan, bundle.model)).save(tmp_path / "bundle")
    small = channels({"source": "bundle", "name": str(tmp_path / "bundle")}, widths=[0.5, 1.0])
    assert small.decisions[0].choices == (4, 8)
    assert small.cost(small.widest()) == space.cost(arch)
    x = images(small)
    assert torch.equal(small.build(small.widest()).eval()(x), apply(plan, bundle.model)(x))
    with pytest.raises(InputError, match="has 10 classes"):
        small.build(small.widest(), small.task(num_outputs=5))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["cifar_resnet20", "mobilenetv2", "vit"])
def test_networks_export_to_onnx(name: str, tmp_path: Path) -> None:
    space = channels(MODELS[name], depth=True)
    x = images(space)
    for number, arch in enumerate(samples(space, 2)):
        built = space.build(arch).eval()
        file = tmp_path / f"{number}.onnx"
        torch.onnx.export(built, (x,), file, input_names=["input"], dynamo=False)
        (found,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
            None, {"input": x.numpy()}
        )
        expected = built(x).detach().numpy()
        assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


# What the user gets wrong.


def test_wrong_widths_are_refused_by_name() -> None:
    space = channels(CIFAR)
    arch = {**space.widest(), "layer1.0.conv1.width": 7}
    with pytest.raises(InputError) as error:
        space.build(arch)
    assert error.value.problems == ["layer1.0.conv1.width: got 7; allowed 5, 6, 8, 10, 11, 13, 14 or 16"]
    with pytest.raises(InputError, match="list of 9 entries"):
        space.parse([5, 5])
    with pytest.raises(InputError, match=r"layer2\.0\.conv1\.width: got 3; allowed 10, 13"):
        space.parse([5, 5, 5, 3, 10, 10, 19, 19, 19])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"include": ["layer9*"]}, "space channels: option include: the pattern 'layer9\\*' matches no layer"),
        ({"exclude": ["layer*"]}, "space channels: no layer is left to prune"),
        ({"min_width": 64}, "leaves nothing to decide"),
        ({"widths": [0.5, 1.5]}, r"option widths\.1: .*at most 1"),
        ({"model": {"source": "builtin", "name": "cifar_resnet21"}}, "builtin has no model 'cifar_resnet21'"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        create("channels", {"model": CIFAR, **options})
    assert len(error.value.problems) == 1
