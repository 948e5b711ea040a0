"""Which weights take part: the rules on real models, and what a recipe may change."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import nn

from compress.core.errors import InputError
from compress.prune.modules import assign_modules


@cache
def _model(name: str) -> nn.Module:
    with torch.device("meta"):
        if name.startswith("torchvision/"):
            return torchvision.models.get_model(name.removeprefix("torchvision/"), weights=None)
        return timm.create_model(name)


def _modules(name: str) -> dict[str, str]:
    return {weight.name: weight.module for weight in assign_modules(_model(name)).weights}


def _reasons(name: str) -> dict[str, str]:
    return {skip.name: skip.reason for skip in assign_modules(_model(name)).skipped}


NAMES = [
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "pvt_v2_b0",
    "mixer_s32_224",
    "convnext_atto",
    "levit_128s",
    "maxvit_nano_rw_256",
    "mobilenetv4_hybrid_medium",
    "botnet26t_256",
    "resnet18",
    "vgg11_bn",
    "densenet121",
    "inception_v4",
    "mobilenetv3_large_100",
    "regnety_004",
    "torchvision/vit_b_16",
    "torchvision/swin_t",
    "torchvision/googlenet",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_every_parameter_takes_part_or_has_a_reason(name):
    model = _model(name)
    modules, reasons = _modules(name), _reasons(name)
    assert sorted([*modules, *reasons]) == sorted(key for key, _ in model.named_parameters())
    assert all(reasons.values())
    size = {key: parameter.numel() for key, parameter in model.named_parameters()}
    assert sum(size[key] for key in modules) > 0.6 * (sum(size.values()) - sum(size[k] for k in _heads(reasons)))


def _heads(reasons: dict[str, str]) -> list[str]:
    return [key for key, reason in reasons.items() if reason == "classifier"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swin_tiny_patch4_window7_224", {"QKV-M", "PRJ-M", "MLP-M"}),
        ("swinv2_tiny_window8_256", {"QKV-M", "PRJ-M", "MLP-M"}),
        ("vit_tiny_patch16_224", {"QKV-M", "PRJ-M", "MLP-M"}),
        ("pvt_v2_b0", {"QKV-M", "PRJ-M", "MLP-M"}),
        ("levit_128s", {"QKV-M", "PRJ-M", "MLP-M"}),
        ("torchvision/vit_b_16", {"QKV-M", "PRJ-M", "MLP-M"}),
        ("torchvision/swin_t", {"QKV-M", "PRJ-M", "MLP-M"}),
        ("mixer_s32_224", {"TOK-M", "MLP-M"}),
        ("convnext_atto", {"MLP-M"}),
        ("resnet18", {"layer1", "layer2", "layer3", "layer4"}),
        ("vgg11_bn", {"features/1", "features/2", "features/3", "features/4", "pre_logits"}),
        ("regnety_004", {"s1", "s2", "s3", "s4"}),
    ],
)
def test_modules_of_known_families(name, expected):
    assert set(_modules(name).values()) == expected


@pytest.mark.parametrize(
    ("name", "weight", "module"),
    [
        ("swin_tiny_patch4_window7_224", "layers.2.blocks.5.mlp.fc2.weight", "MLP-M"),
        ("pvt_v2_b0", "stages.0.blocks.0.attn.sr.weight", "QKV-M"),
        ("levit_128s", "stages.1.downsample.attn_downsample.proj.ln.linear.weight", "PRJ-M"),
        ("torchvision/vit_b_16", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight", "QKV-M"),
        ("torchvision/vit_b_16", "encoder.layers.encoder_layer_0.self_attention.out_proj.weight", "PRJ-M"),
        ("mobilenetv4_hybrid_medium", "blocks.2.4.attn.query.proj.weight", "QKV-M"),
        ("maxvit_nano_rw_256", "stages.0.blocks.0.conv.se.fc1.weight", "stages.0"),
        ("maxvit_nano_rw_256", "stages.0.blocks.0.attn_block.mlp.fc1.weight", "MLP-M"),
        ("botnet26t_256", "stages.3.0.conv1_1x1.conv.weight", "stages.3"),
        ("resnet18", "layer2.0.downsample.0.weight", "layer2"),
        ("densenet121", "features.denseblock1.denselayer1.conv1.weight", "features.denseblock1"),
        ("torchvision/googlenet", "inception3a.branch1.conv.weight", "inception3a"),
    ],
)
def test_single_weights(name, weight, module):
    assert _modules(name)[weight] == module


@pytest.mark.parametrize(
    ("name", "weight", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn.relative_position_bias_table", "WindowAttention"),
        ("swin_tiny_patch4_window7_224", "layers.1.downsample.reduction.weight", "merging"),
        ("swin_tiny_patch4_window7_224", "patch_embed.proj.weight", "patch embedding"),
        ("swin_tiny_patch4_window7_224", "head.fc.weight", "classifier"),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.norm1.weight", "LayerNorm"),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.mlp.fc1.bias", "bias"),
        ("swinv2_tiny_window8_256", "layers.0.blocks.0.attn.cpb_mlp.0.weight", "position"),
        ("deit_tiny_distilled_patch16_224", "head_dist.weight", "classifier"),
        ("convnext_atto", "stages.0.blocks.0.conv_dw.weight", "depthwise"),
        ("convnext_atto", "stages.1.downsample.1.weight", "merging"),
        ("resnet18", "conv1.weight", "stem"),
        ("vgg11_bn", "features.0.weight", "stem"),
        ("torchvision/vit_b_16", "conv_proj.weight", "patch embedding"),
        ("torchvision/googlenet", "fc.weight", "classifier"),
    ],
)
def test_reasons_to_be_left_whole(name, weight, reason):
    assert reason in _reasons(name)[weight]


def test_plain_chain_keeps_first_convolution_and_last_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 4))
    assert [weight.name for weight in assign_modules(model).weights] == ["1.weight", "3.weight"]


def test_torch_encoder_layer_follows_the_transformer_rules():
    model = nn.ModuleDict({"body": nn.TransformerEncoderLayer(8, 2, 16), "head": nn.Linear(8, 2)})
    assert {weight.name: weight.module for weight in assign_modules(model).weights} == {
        "body.self_attn.in_proj_weight": "QKV-M",
        "body.self_attn.out_proj.weight": "PRJ-M",
        "body.linear1.weight": "MLP-M",
        "body.linear2.weight": "MLP-M",
    }


def test_recipe_overrides_modules_by_name():
    model = _model("swin_tiny_patch4_window7_224")
    rules = {"attention": ["*.attn.*"], "late": ["layers.3.*.mlp.*", "head.fc"]}
    assignment = assign_modules(model, rules)
    modules = {weight.name: weight.module for weight in assignment.weights}
    assert set(modules.values()) == {"attention", "late"}
    assert modules["head.fc.weight"] == "late" and "layers.0.blocks.0.mlp.fc1.weight" not in modules
    reasons = {skip.name: skip.reason for skip in assignment.skipped}
    assert reasons["layers.0.blocks.0.mlp.fc1.weight"] == "not named in modules"
    assert "WindowAttention" in reasons["layers.0.blocks.0.attn.relative_position_bias_table"]


def test_include_and_exclude_narrow_the_rules_and_say_so():
    assignment = assign_modules(_model("vit_tiny_patch16_224"), include=["blocks.*"], exclude=["*.mlp.fc2", "head*"])
    names = {weight.name for weight in assignment.weights}
    reasons = {skip.name: skip.reason for skip in assignment.skipped}
    assert "blocks.0.mlp.fc1.weight" in names and reasons["blocks.0.mlp.fc2.weight"] == "excluded"


def test_globs_that_match_nothing_are_refused_all_at_once_with_near_names():
    with pytest.raises(InputError) as caught:
        assign_modules(
            _model("resnet18"), {"all": ["layer9.*"]}, include=["layer1.0.conv3"], exclude=["*downsmaple*", "zzz"]
        )
    problems = caught.value.problems
    assert len(problems) == 4
    assert "'layer1.0.conv1'" in problems[0] or "'layer1.0.conv2'" in problems[0]
    assert "did you mean 'downsample'" in problems[1]
    assert "weights are called 'conv1.weight'" in problems[2]
    assert problems[3].startswith("prune.modules.all: 'layer9.*' matches no weight")


def test_one_weight_in_two_modules_is_refused_by_name():
    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight.*'a' and 'b'"):
        assign_modules(_model("resnet18"), {"a": ["layer1.*"], "b": ["*.conv1"]})
