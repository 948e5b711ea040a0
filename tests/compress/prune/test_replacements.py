"""`prune: {kind: hypercomplex}` and `{kind: low_rank}`: which layers, what it costs, and the whole way to a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from timm.layers import Conv2dSame
from timm.layers import Linear as CastingLinear
from torch import Tensor, nn

import compress
from compress.bundle import Bundle, open_model
from compress.core.errors import CompressError, InputError
from compress.export.exporters import ExportConfig
from compress.graph.apply import apply
from compress.prune.kinds import Details, Surroundings, check_pruning, prune_bundle
from compress.prune.kinds.hypercomplex import HypercomplexKind
from compress.prune.kinds.low_rank import LowRankKind
from compress.prune.kinds.merge import Merge
from compress.prune.kinds.structure import Structure
from compress.prune.kinds.weights import Weights
from compress.prune.narrow import shrunk
from compress.prune.replaceable import Replacement, replace_layers, replaceable
from compress.prune.structure import plan
from compress.runs.dry_run import dry_run
from compress.runs.inspection import inspect_model
from compress.runs.recipe import load_recipe
from compress.testing.stages import check_stage
from compress.transforms.hypercomplex import Hypercomplex, HypercomplexLayer
from compress.transforms.low_rank import LowRank
from evaluators.datasets import Preprocessing
from evaluators.latency.measure import LatencyConfig
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig

AROUND = Surroundings(None, "cpu", 0, LatencyConfig(), ExportConfig())
RESNET = ModelConfig(source="builtin", name="cifar_resnet20")
VIT = ModelConfig(
    name="vit_tiny_patch16_224",
    kwargs={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10},
)


def opened(config: ModelConfig = RESNET) -> Bundle:
    return open_model(config, seed=1).bundle


def of(model: nn.Module, size: tuple[int, ...] = (8, 8, 8)) -> Bundle:
    zeros, ones = (0.0,) * size[0], (1.0,) * size[0]
    return Bundle(model.eval(), RESNET, DEFAULT.bind(0, size), Preprocessing(size, zeros, ones))


def reasons(details: Details) -> dict[str, str]:
    return {skip["layer"]: skip["reason"] for skip in details["skipped"]}


def outputs(bundle: Bundle) -> Tensor:
    with torch.no_grad():
        return bundle.model(bundle.example_inputs(2))


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize(
    "kind",
    [
        HypercomplexKind(n=2),
        HypercomplexKind(n=4, init="fresh"),
        LowRankKind(rank=3),
        LowRankKind(share=0.25),
        LowRankKind(energy=0.6),
        LowRankKind(budget={"params": 0.6}),  # type: ignore[arg-type]
    ],
    ids=lambda kind: "-".join([kind.kind, *sorted(kind.model_fields_set)]),
)
def test_the_bundle_comes_back_and_its_costs_are_true(config: ModelConfig, kind: Any, tmp_path: Path) -> None:
    before = opened(config).costs()
    small, details = prune_bundle(opened(config), kind, AROUND)
    small.save(tmp_path / "b")
    assert torch.equal(outputs(Bundle.load(tmp_path / "b")), outputs(small))
    costs = small.costs()
    rows = details["layers"]
    assert costs["params"] == sum(p.numel() for p in small.model.parameters()) < before["params"]
    assert details["predicted"] == {key: [before[key], costs[key]] for key in ("macs", "params")}
    if isinstance(kind, HypercomplexKind):
        saved = sum(row["before"] - row["after"] for row in rows)
        assert costs["macs"] == before["macs"] and before["params"] - costs["params"] == saved
    else:
        assert costs["macs"] < before["macs"]
        assert all(row["after"] < row["before"] for row in rows)
    if isinstance(kind, LowRankKind) and kind.budget is not None:
        assert 0.58 <= costs["params"] / before["params"] <= 0.6


def test_the_nearest_sums_are_what_the_model_then_computes() -> None:
    bundle = opened()
    given = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    small, details = prune_bundle(bundle, HypercomplexKind(n=2, exclude=["layer3*"]), AROUND)
    layers = {name: each for name, each in small.model.named_modules() if isinstance(each, HypercomplexLayer)}
    assert layers.keys() == {row["name"] for row in details["layers"]} and "layer3.0.conv1" not in layers
    assert reasons(details)["layer3.0.conv1"] == "prune.exclude: 'layer3*'"
    assert reasons(details)["conv1"] == "2 does not divide its 3 inputs"
    again = opened()
    again.model.load_state_dict(given | {f"{name}.weight": each.weight.detach() for name, each in layers.items()})
    assert torch.allclose(outputs(small), outputs(again), atol=1e-4)
    assert "0.5" not in details["notes"][1] and "The nearest sums leave out" in details["notes"][1]


class Odd(nn.Module):
    """Layers of every sort that stay as they are, or would trip whoever replaces them."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.read = nn.Linear(16, 16)
        self.tied, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
        self.other.weight = self.tied.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.twice = nn.Linear(16, 16)
        self.same = Conv2dSame(16, 16, 3, stride=2)
        self.casting = CastingLinear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.unused = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.grouped(self.depthwise(self.plain(x)))).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = nn.functional.linear(x, self.read.weight, self.read.bias)
        return self.casting(self.twice(self.twice(self.normed(self.other(self.tied(x))))))


@pytest.mark.parametrize("kind", [HypercomplexKind(n=2), LowRankKind(rank=2)], ids=lambda kind: kind.kind)
def test_layers_that_stay_are_named_with_the_reason(kind: Any) -> None:
    small, details = prune_bundle(of(Odd()), kind, AROUND)
    assert [row["name"] for row in details["layers"]] == ["plain", "twice", "casting"]
    why = reasons(details)
    assert "depthwise" in why["depthwise"] and why["grouped"] == "it has groups"
    assert why["read"] == why["unused"] == "it is not called: another module reads its weight, or nothing does"
    assert why["attention.out_proj"] == why["read"]
    assert why["tied"] == why["other"] == "its weight is another layer's as well"
    assert why["normed"] == "its weight is computed, or hooks are on it"
    assert why["same"] == "a timm.layers.conv2d_same.Conv2dSame computes in a way of its own"
    assert len(why) == 9 and outputs(small).isfinite().all()


def test_a_layer_used_twice_saves_twice_the_macs() -> None:
    bundle = of(Odd())
    _, details = prune_bundle(bundle, LowRankKind(rank=2, include=["twice"]), AROUND)
    macs, params = (before - after for before, after in details["predicted"].values())
    assert params == 16 * 16 - 2 * 32 and macs == 2 * 16 * params  # 16 tokens


class Looking(nn.Module):
    """Asks a layer that it calls where its weight is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.layer.weight.device))


@pytest.mark.parametrize("kind", [HypercomplexKind(n=2), LowRankKind(rank=2)], ids=lambda kind: kind.kind)
def test_a_model_that_looks_at_a_weight_finds_it(kind: Any) -> None:
    small, details = prune_bundle(of(Looking()), kind, AROUND)
    assert [row["name"] for row in details["layers"]] == ["layer"] and outputs(small).shape == (2, 8, 8, 8)


class Curious(nn.Module):
    """Looks at the size of a layer that it also calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / self.layer.in_features


@pytest.mark.parametrize("kind", [HypercomplexKind(n=2), LowRankKind(rank=2)], ids=lambda kind: kind.kind)
def test_a_model_that_looks_into_its_layers_is_refused_in_one_sentence(kind: Any) -> None:
    with pytest.raises(InputError, match=r"does not run with \w+ layers .*in_features.*prune\.exclude"):
        prune_bundle(of(Curious()), kind, AROUND)


def test_new_layers_that_compute_something_else_are_found_out() -> None:
    bundle = of(nn.Sequential(nn.Conv2d(8, 8, 1)))
    (layer,), _ = replaceable(bundle.model, bundle.example_inputs(), lambda layer: None, (), ())
    wrong = {"reduce.weight": torch.ones(2, 8, 1, 1), "expand.weight": torch.ones(8, 2, 1, 1)}
    new = [Replacement(layer, torch.ones(8, 8, 1, 1), wrong, "expand.bias")]
    with pytest.raises(CompressError, match=r"low_rank layers give other outputs .* please report"):
        replace_layers(bundle, LowRank(ranks={"0": 2}), new)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (HypercomplexKind(include=["layer9*"]), r"prune\.include: the pattern 'layer9\*' matches no linear layer"),
        (LowRankKind(rank=2, exclude=["bn1"]), r"prune\.exclude: the pattern 'bn1' matches no linear layer"),
        (HypercomplexKind(n=7), "no layer is left to replace; conv1: 7 does not divide its 3 inputs and 16 outputs"),
        (HypercomplexKind(n=16, include=["layer1*"]), "sums of 16 products would have 4240 parameters, it has 2304"),
        (LowRankKind(rank=64), "no layer is left to replace; conv1: it costs less up to rank 10, not at 64"),
        (LowRankKind(share=0.99), "conv1: it costs less up to rank 10, not at 16"),
        (
            LowRankKind(budget={"macs": 0.01}),  # type: ignore[arg-type]
            r"prune\.budget\.macs: 0\.01 cannot be met; the nearest is 0\.\d+: every layer",
        ),
        (
            LowRankKind(budget={"params": 0.9}, include=["linear"]),  # type: ignore[arg-type]
            r"prune\.budget\.params: 0\.9 cannot be met; the nearest is 0\.99\d: every layer",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_anything_runs(kind: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_pruning(opened(), kind)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (LowRankKind(energy=0.5, include=["2"]), "2: no rank would save anything"),
        (LowRankKind(budget={"params": 0.5}, include=["2"]), "2: no rank would save anything"),  # type: ignore[arg-type]
        (LowRankKind(budget={"macs": 0.9}), "nearest is 0.778: too few layers"),  # type: ignore[arg-type]
    ],
)
def test_ranks_that_no_weights_of_such_shapes_could_have_are_told_before_anything_runs(
    kind: Any, sentence: str
) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(512, 1))
    with pytest.raises(InputError, match=sentence):
        check_pruning(of(model), kind)


def test_a_rank_that_saves_nothing_leaves_a_layer_whole() -> None:
    _, details = prune_bundle(opened(), LowRankKind(rank=16), AROUND)
    assert reasons(details)["layer1.0.conv1"] == "it costs less up to rank 14, not at 16"
    assert reasons(details)["linear"] == "it costs less up to rank 8, not at 16"
    assert next(row["name"] for row in details["layers"]) == "layer2.0.conv1"


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"kind": "low_rank"}, "give exactly one of rank, share, energy and budget; got none"),
        ({"kind": "low_rank", "rank": 3, "energy": 0.5}, "got rank, energy"),
        ({"kind": "low_rank", "budget": {"latency": 0.5}}, "latency: unknown key; allowed macs, params"),
        ({"kind": "low_rank", "budget": {}}, "give exactly one of macs and params"),
        ({"kind": "hypercomplex", "n": 1}, r"prune\.n: out of range; got 1; allowed at least 2 and at most 16"),
        ({"kind": "hypercomplex", "init": "svd"}, r"prune\.init: unknown value; got \"svd\"; allowed weights, fresh"),
    ],
)
def test_wrong_sections_are_one_sentence(section: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        load_recipe(recipe(tmp_path, prune=section))


@pytest.mark.parametrize("first", [HypercomplexKind(n=2), LowRankKind(share=0.3)], ids=lambda kind: kind.kind)
def test_structure_weights_and_a_second_replacement_follow_on_one(first: Any, tmp_path: Path) -> None:
    bundle, _ = prune_bundle(opened(), first, AROUND)
    inputs = bundle.example_inputs()
    removal = plan(bundle.model, inputs, "magnitude", {"params": 0.7}, align=1)
    bundle = shrunk(bundle, removal, apply(removal, bundle.model))
    bundle, _ = prune_bundle(bundle, LowRankKind(energy=0.9), AROUND) if first.kind == "low_rank" else (bundle, {})
    bundle, _ = prune_bundle(bundle, Weights(sparsity=0.5, modules={"all": ["*linear*", "conv1*"]}), AROUND)
    bundle.save(tmp_path / "b")
    again = Bundle.load(tmp_path / "b")
    kinds = [first.kind, "narrow", "low_rank"]
    assert [each.kind for each in again.transforms] == kinds[: len(bundle.transforms)]
    assert torch.equal(outputs(again), outputs(bundle)) and again.costs() == bundle.costs()


SMALL = "16/16-16/32-32/64-64"


def recipe(folder: Path, **sections: Any) -> Path:
    content = {
        "version": 1,
        "name": "replaced",
        "model": {"source": "space", "name": "resnet_shapes", "kwargs": {"options": {"depth": 8}, "arch": SMALL}},
        "data": {"name": "digits", "image_size": 8, "limit_train": 40, "limit_test": 20, "batch_size": 20},
        **sections,
    }
    (folder / "replaced.yaml").write_text(yaml.safe_dump(content))
    return folder / "replaced.yaml"


@pytest.mark.parametrize("section", [{"kind": "hypercomplex"}, {"kind": "low_rank", "budget": {"macs": 0.5}}])
def test_a_run_trains_exports_reports_and_resumes(section: dict[str, Any], tmp_path: Path) -> None:
    check_stage("prune", section)
    path = recipe(tmp_path, prune=section, finetune={"epochs": 1}, export={"exporter": "torchscript"})
    predicted = dry_run(load_recipe(path), "cpu").predicted
    result = compress.run(path, out=tmp_path / "run")
    final = result.report["final"]
    assert {key: final[key] for key in predicted} == {key: after for key, (_, after) in predicted.items()}
    assert final["onnx_parity_max_rel"] < 1e-4
    bundle = Bundle.load(tmp_path / "run")
    graph = onnx.load(tmp_path / "run" / "model.onnx").graph
    stored = sum(torch.Size(each.dims).numel() for each in graph.initializer)
    assert not {"Einsum", "MatMul", "Mul"} & {node.op_type for node in graph.node}  # nothing is left to multiply out
    assert any(isinstance(each, HypercomplexLayer) for each in bundle.model.modules()) == (stored > 70_000)
    page = (tmp_path / "run" / "report.html").read_text()
    told = "sums of 4 Kronecker products" if section["kind"] == "hypercomplex" else "layers are two each"
    assert told in page
    assert inspect_model(str(tmp_path / "run")).params == final["params"]
    details = json.loads(next((tmp_path / "run" / "stages").glob("*-prune/details.json")).read_text())
    assert details["kind"] == section["kind"]


def test_a_lone_layer_and_a_frozen_one_are_replaced_too() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    model[0].requires_grad_(False)
    small, _ = prune_bundle(of(model), HypercomplexKind(n=2), AROUND)
    assert [p.requires_grad for p in small.model.parameters()] == [False] * 3 + [True] * 3
    transform: Any = small.transforms[0]
    assert isinstance(transform, Hypercomplex) and transform.layers == ("0", "1")


def test_units_that_are_alike_merge_exactly_in_the_factors_of_a_sum() -> None:
    bundle, _ = prune_bundle(opened(), HypercomplexKind(n=2), AROUND)
    values = bundle.model.state_dict()
    values["layer1.0.conv1.blocks"][:, 1] = values["layer1.0.conv1.blocks"][:, 0]
    values["layer1.0.conv2.blocks"][:, :, 1] = values["layer1.0.conv2.blocks"][:, :, 0]
    expected = outputs(bundle)
    merged, details = prune_bundle(bundle, Merge(beta=0.003, max_ratio=0.2, fold_bn=False), AROUND)
    narrower = [row for row in details["layers"] if row["after"] < row["before"]]
    assert [(row["name"], row["before"], row["after"]) for row in narrower] == [("layer1.0.conv1:channels2", 8, 7)]
    assert torch.allclose(outputs(merged), expected, atol=1e-5)


@pytest.mark.parametrize("align, nearest", [(1, "0.130"), (16, "0.338")])
def test_a_budget_below_the_least_widths_is_told_before_anything_runs(align: int, nearest: str) -> None:
    config = {"kind": "structure", "criterion": "magnitude", "budget": {"macs": 0.05}, "align": align}
    with pytest.raises(InputError, match=rf"prune\.budget\.macs: 0\.05 cannot be met; .* {nearest}: every group"):
        check_pruning(opened(), Structure.model_validate(config))
    check_pruning(opened(), Structure.model_validate({**config, "budget": {"macs": 0.4}}))
