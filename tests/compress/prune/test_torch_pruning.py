"""torch-pruning as a citizen: its pruners in a recipe, and its histories as plans that bundles can hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from pages import ROOT, blocks
from torch import Tensor, nn

import compress
from compress.bundle import Bundle, open_model
from compress.core.errors import CompressError, InputError
from compress.core.problems import under, validated
from compress.export.exporters import ExportConfig
from compress.prune.kinds import Surroundings, check_pruning, prune_bundle
from compress.prune.kinds.torch_pruning import TorchPruning
from compress.prune.peers.history import compare
from evaluators.datasets.digits import DigitsConfig
from evaluators.latency.measure import LatencyConfig
from spaces.zoo import ModelConfig

tp = pytest.importorskip("torch_pruning")

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
RESNET = ModelConfig(source="builtin", name="cifar_resnet20")
HEADS = {"prune_num_heads": True, "head_pruning_ratio": 0.3, "prune_head_dims": False}
INSIDE = ["conv1", "layer*.conv2"]  # what stays whole so that only channels inside of residual blocks go


def opened(model: ModelConfig) -> tuple[Bundle, Surroundings]:
    digits = DigitsConfig(name="digits", image_size=16, limit_train=48, limit_test=20, batch_size=16)
    found = open_model(model, digits, seed=1)
    return found.bundle, Surroundings(found.data, "cpu", 0, LatencyConfig(), ExportConfig())


def pruned(model: ModelConfig, **settings: Any) -> tuple[Bundle, Bundle, dict[str, Any]]:
    dense, around = opened(model)
    config = TorchPruning(**settings)
    check_pruning(dense, config)
    small, details = prune_bundle(copy.deepcopy(dense), config, around)
    return dense, small, details


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(images)
    return found


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT).eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"importance": "l1", "round_to": 4},
        {"importance": "lamp", "global_pruning": True, "max_pruning_ratio": 0.8},
        {"importance": "taylor", "global_pruning": True, "isomorphic": True, "iterative_steps": 2},
        {"importance": "hessian", "calibration_batches": 1},
        {"importance": "fpgm", "pruner": "growing_reg", "sparse_updates": 2},
        {"importance": "bn_scale", "pruner": "bn_scale", "sparse_updates": 2},
        {"importance": "random", "pruner": "group_norm", "sparse_updates": 2},
    ],
    ids=lambda settings: settings["importance"],
)
def test_every_pruner_and_importance_leaves_a_bundle_that_reloads(tmp_path: Path, settings: dict[str, Any]) -> None:
    dense, small, details = pruned(RESNET, pruning_ratio=0.4, exclude=INSIDE, **settings)
    assert small.costs()["macs"] < 0.8 * dense.costs()["macs"] and details["kind"] == "torch_pruning"
    assert details["predicted"]["macs"] == [dense.costs()["macs"], small.costs()["macs"]]
    assert all(row["name"].startswith("layer") for row in details["layers"] if row["after"] < row["before"])
    assert details["compensation"]["layers"]
    small.save(tmp_path / "b")
    images = small.example_inputs(2)
    assert torch.equal(outputs(compress.load(tmp_path / "b"), images), outputs(small.model, images))


def test_weights_are_those_that_torch_pruning_leaves_by_itself() -> None:
    dense, small, _ = pruned(RESNET, importance="l2", exclude=INSIDE, compensate=False, bn_batches=0)
    theirs = copy.deepcopy(dense.model)
    kept = [m for n, m in theirs.named_modules() if isinstance(m, nn.Conv2d) and (n == "conv1" or n[-1] == "2")]
    pruner = tp.pruner.BasePruner(
        theirs,
        dense.example_inputs(),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[*kept, theirs.get_submodule("linear")],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()
    found = small.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in theirs.state_dict().items())
    images = dense.example_inputs(2)
    torch.testing.assert_close(outputs(theirs, images), outputs(small.model, images))


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, {"num_heads": 3, "head_dim": 4, "attn_dim": 12}),
        (HEADS, {"num_heads": 2, "head_dim": 8}),
    ],
    ids=["head widths", "heads"],
)
def test_heads_are_told_to_it_and_the_numbers_beside_them_follow(
    tmp_path: Path, settings: dict[str, Any], left: dict[str, int]
) -> None:
    dense, small, _ = pruned(ModelConfig(source="timm", name="vit_tiny_patch16_224", kwargs=VIT), **settings)
    attention: Any = small.model.get_submodule("blocks.1.attn")
    assert {name: getattr(attention, name) for name in left} == left
    assert attention.scale == 8**-0.5  # as trained
    assert small.costs()["macs"] < 0.5 * dense.costs()["macs"]
    small.save(tmp_path / "b")
    images = small.example_inputs(2)
    assert torch.equal(outputs(compress.load(tmp_path / "b"), images), outputs(small.model, images))


def attention_history(model: nn.Module, removed: list[int]) -> list[Any]:
    """Remove inputs of the first output projection, 8 of which are a head, and what is coupled to them."""
    graph = tp.DependencyGraph().build_dependency(copy.deepcopy(model), (torch.randn(1, 3, 16, 16),), verbose=False)
    projection = graph.model.get_submodule("blocks.0.attn.proj")
    graph.get_pruning_group(projection, tp.prune_linear_in_channels, removed).prune()
    history: list[Any] = graph.pruning_history()
    return history


def test_heads_may_lose_different_units_of_equal_number() -> None:
    model, images = transformer(), torch.randn(2, 3, 16, 16)
    history = attention_history(model, [0, 3, 8, 9, 22, 23])
    small = compress.apply(compress.plan_from_torch_pruning(history, model, images), model)
    qkv = small.get_submodule("blocks.0.attn.qkv").weight
    assert isinstance(qkv, Tensor) and qkv.shape == (3 * 18, 24)
    weight = model.get_parameter("blocks.0.attn.proj.weight")
    kept = [index for index in range(24) if index not in (0, 3, 8, 9, 22, 23)]
    assert torch.equal(small.get_parameter("blocks.0.attn.proj.weight"), weight[:, kept])
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        silenced.get_parameter("blocks.0.attn.qkv.weight").view(3, 24, 24)[:, [0, 3, 8, 9, 22, 23]] = 0
        silenced.get_parameter("blocks.0.attn.qkv.bias").view(3, 24)[:, [0, 3, 8, 9, 22, 23]] = 0
    torch.testing.assert_close(outputs(small, images), outputs(silenced, images))


def test_heads_of_different_widths_are_refused_by_name() -> None:
    model = transformer()
    with pytest.raises(InputError, match=r"blocks\.0\.attn.* lost 1 and 2 units in different heads"):
        compress.plan_from_torch_pruning(attention_history(model, [0, 8, 9, 22]), model, torch.randn(1, 3, 16, 16))


class Merging(tp.BasePruningFunc):  # type: ignore[misc,name-defined]
    """How torch-pruning is to narrow the patch merging of timm's Swin: four neighbours lie behind each other."""

    def prune_out_channels(self, layer: Any, idxs: list[int]) -> Any:
        tp.prune_linear_out_channels(layer.reduction, idxs)
        return layer

    def prune_in_channels(self, layer: Any, idxs: list[int]) -> Any:
        every = [index + place * layer.dim for place in range(4) for index in idxs]
        tp.prune_linear_in_channels(layer.reduction, every)
        tp.prune_layernorm_out_channels(layer.norm, every)
        layer.dim -= len(idxs)
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.reduction.out_features)

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.dim)


def test_what_torch_pruning_was_told_to_follow_a_model_is_told_again() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}
    sizes["window_size"] = 4
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **sizes).eval()
    images = torch.randn(1, 3, 16, 16)
    merging = type(model.get_submodule("layers.1.downsample"))

    def told(of: nn.Module) -> dict[str, Any]:
        tables = [parameter for name, parameter in of.named_parameters() if "relative_position" in name]
        return {"customized_pruners": {merging: Merging()}, "ignored_params": tables}

    theirs = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(theirs, (images,), verbose=False, **told(theirs))
    first = theirs.get_submodule("patch_embed.proj")
    graph.get_pruning_group(first, tp.prune_conv_out_channels, [1, 5, 7, 8]).prune()
    plan = compress.plan_from_torch_pruning(graph.pruning_history(), model, images, **told(model))
    torch.testing.assert_close(outputs(compress.apply(plan, model), images), outputs(theirs, images))
    with pytest.raises(InputError, match=r"has narrowed .* depends on the same width and has not lost the same units"):
        compress.plan_from_torch_pruning(graph.pruning_history(), model, images)


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ([["layer1.0.conv3", True, [0]]], r"entry 0 .* 'layer1.0.conv3', which the model does not have; did you mean"),
        ([["layer1.0.conv1", True, [3]]] * 16, r"entry 13 .* removes outputs up to 3 of 'layer1.0.conv1', which has 3"),
        ([["layer1.0", True, [1]]], r"'layer1.0', which torch-pruning does not find"),
        ([["linear", True, [1]]], r"'linear.weight' \(dimension 0\) .* linear must stay whole \(.*output of the model"),
        ([], "has removed nothing"),
        ("layer1", "not a pruning history"),
        ([["layer1.0.conv1", True, [1.5]]], "not a pruning history: TypeError: 'float' object"),
    ],
)
def test_a_history_of_another_model_is_one_sentence(history: Any, says: str) -> None:
    bundle = open_model(RESNET).bundle
    with pytest.raises(InputError, match=says):
        compress.plan_from_torch_pruning(history, bundle.model, bundle.example_inputs())


def test_a_module_that_computes_something_else_is_caught() -> None:
    bundle = open_model(RESNET).bundle
    inputs = bundle.example_inputs()
    plan = compress.plan_from_torch_pruning([["layer1.0.conv1", True, [0, 1]]], bundle.model, inputs)
    ours, theirs = (compress.apply(plan, bundle.model) for _ in range(2))
    compare(theirs, ours, plan, inputs)
    theirs.get_submodule("layer1.0.bn1").eps = 0.5
    with pytest.raises(CompressError, match="gives other outputs than the planned one"):
        compare(theirs, ours, plan, inputs)
    with torch.no_grad():
        theirs.get_parameter("layer1.0.conv1.weight").mul_(2)
    with pytest.raises(CompressError, match=r"other weights than the plan's: layer1\.0\.conv1\.weight"):
        compare(theirs, ours, plan, inputs)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"importance": "l3"}, r"prune\.importance: .*l3.*allowed l1, l2"),
        ({"pruner": "group_norm"}, "the others with at least 1"),
        ({"sparse_updates": 5}, "allowed: base with 0"),
        ({"isomorphic": True}, "global_pruning"),
        ({"prune_num_heads": True}, "give prune_num_heads and head_pruning_ratio together"),
        ({"pruning_ratio": 0.0}, "pruning_ratio"),
    ],
)
def test_settings_that_make_no_sense_are_told(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        validated(TorchPruning, {"kind": "torch_pruning", **settings}, under("prune."))


def test_what_the_model_or_the_data_do_not_allow_is_told() -> None:
    bundle, around = opened(RESNET)
    with pytest.raises(InputError, match=r"prune.exclude: the pattern 'layr\*' matches no layer"):
        check_pruning(bundle, TorchPruning(exclude=["layr*"]))
    for nothing in ({"exclude": ["*"]}, {"round_to": 64, "pruning_ratio": 0.2}):
        with pytest.raises(InputError, match="torch-pruning removes nothing with pruning_ratio"):
            check_pruning(bundle, TorchPruning.model_validate(nothing))
    nothing = Surroundings(None, "cpu", 0, around.latency, around.export)
    with pytest.raises(InputError, match=r"prune\.importance: 'taylor' needs data"):
        prune_bundle(bundle, TorchPruning(importance="taylor"), nothing)
    bundle.masks = {"linear.weight": torch.ones(10, 64, dtype=torch.bool)}
    with pytest.raises(InputError, match=r"prune\.sparse_updates: 5 .* masks hold at zero"):
        check_pruning(bundle, TorchPruning(pruner="group_norm", sparse_updates=5))


def test_a_recipe_runs_it_and_the_lines_of_its_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"name": "digits", "image_size": 16, "limit_train": 32, "limit_test": 20, "batch_size": 16}
    prune = {"kind": "torch_pruning", "pruning_ratio": 0.5, "exclude": INSIDE}
    model = RESNET.model_dump(exclude_defaults=True)
    recipe = {"version": 1, "name": "tp", "model": model, "data": data, "prune": prune}
    (tmp_path / "tp.yaml").write_text(yaml.safe_dump(recipe))
    result = compress.run(tmp_path / "tp.yaml", out=tmp_path / "run")
    (done,) = json.loads((result.directory / "bundle" / "transforms.json").read_text())
    assert done["kind"] == "narrow" and result.report["final"]["macs"] < 0.6 * result.report["baseline"]["macs"]

    (example,) = (
        code
        for code in blocks((ROOT / "docs" / "kinds_of_pruning.md").read_text(), "python")
        if "torch_pruning" in code
    )
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)
    again = compress.load(tmp_path / "runs" / "mine")
    assert torch.equal(outputs(again, found["images"]), outputs(found["small"], found["images"]))
    assert outputs(again, found["images"]).shape == (1, 1000)
