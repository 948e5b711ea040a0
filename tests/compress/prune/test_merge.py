"""Merging on real architectures: the same as a plain implementation, batch norms folded, nothing left inconsistent."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.fold import foldable_pairs
from compress.graph.graph import Graph, Group
from compress.graph.plan import make_plan
from compress.prune.merge import MergeConfig, MergeResult, fold_all, merge_units, mergeable
from compress.testing.spaces import enliven

MODELS = {
    "resnet18": ({"zero_init_last": False}, 64),
    "mobilenetv2_050": ({}, 64),
    "densenet121": ({"growth_rate": 8, "block_config": (2, 2)}, 64),
    "regnety_002": ({}, 64),
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2, "embed_dim": 48}, 32),
    "convnext_atto": ({}, 64),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    options, size = MODELS[name]
    model = timm.create_model(name, num_classes=10, **options).eval()
    enliven(model)
    return model, torch.randn(1, 3, size, size)


def merge(model: nn.Module, image: Tensor, config: MergeConfig) -> tuple[MergeResult, Graph, Any]:
    """Merge in place; return the result, the groups that took part, and the norms that were folded."""
    folded = fold_all(model, image) if config.fold_bn else ()
    graph = mergeable(build_graph(model, image), model, config)
    return merge_units(model, graph, config), graph, folded


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", ["mean_in_sum_out", "sum_in_mean_out"])
def test_the_merged_model_runs_and_equals_its_narrowed_form(name, rule):
    """What was merged away is zero, so narrowing changes nothing but what norms over channels count."""
    model, image = build(name)
    limit = 0.13 if name == "densenet121" else 0.03  # narrow layers, many layers
    result, graph, _ = merge(model, image, MergeConfig(beta=0.75, rule=rule, max_ratio=limit))
    assert 0 < sum(map(len, result.kept.values())) < sum(graph.widths()[name] for name in result.kept)
    assert all(group.kind in ("channels", "mlp") for group in graph.groups)
    small = apply(make_plan(model, graph, result.kept), model)
    with torch.no_grad():
        if name in ("vit_tiny_patch16_224", "convnext_atto"):
            assert torch.isfinite(small(image)).all()
        else:
            torch.testing.assert_close(small(image), model(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050"])
def test_the_plan_rebuilds_the_merged_module_from_the_base(name):
    model, image = build(name)
    base = copy.deepcopy(model)
    result, graph, folded = merge(model, image, MergeConfig(beta=0.6, max_ratio=0.03))
    plan = make_plan(model, graph, result.kept)
    small = apply(plan, model)
    rebuilt = apply(replace(plan, folded=folded), base)
    rebuilt.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(image), small(image))


def plain_ifm(model: nn.Module, groups: list[Group], beta: float, by_mean: bool) -> dict[str, list[int]]:
    """The loop of the specification, all distances measured anew before every merge."""
    tensors = {name: tensor.double() for name, tensor in model.state_dict().items()}
    counts = {group.name: [1.0] * group.size for group in groups}

    def distances(group: Group) -> tuple[Tensor, list[int]]:
        left = [u for u in range(group.size) if counts[group.name][u]]
        total = torch.zeros(len(left), len(left), dtype=torch.float64)
        for part in group.slices:
            if part.role != "vector":
                rows = tensors[part.tensor].movedim(part.dim, 0)[part.positions[left].flatten(1)].flatten(1)
                total += (rows[:, None] - rows[None]).square().sum(2)
        return total, left

    merged, sweep = True, 0
    while merged:
        merged, sweep = False, sweep + 1
        for group in groups:
            if sweep > group.size:
                continue
            distance, left = distances(group)
            most = distance.max()
            distance.fill_diagonal_(torch.inf)
            if len(left) == 1 or distance.min() > beta * most:
                continue
            i, j = sorted(left[k] for k in divmod(int(distance.argmin()), len(left)))
            k = counts[group.name]
            for part in group.slices:
                rows = tensors[part.tensor].movedim(part.dim, 0)
                at_i, at_j = part.positions[i].flatten(), part.positions[j].flatten()
                mean = (k[i] * rows[at_i] + k[j] * rows[at_j]) / (k[i] + k[j])
                rows[at_i] = mean if (part.role == "in") != by_mean else rows[at_i] + rows[at_j]
                rows[at_j] = 0
            k[i], k[j] = k[i] + k[j], 0
            merged = True
    model.load_state_dict(tensors)
    return {name: [int(c) for c in values if c] for name, values in counts.items()}


class Residual(nn.Module):
    """A stream with a block and with a layer from the stream to itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 3)
        self.a, self.b = nn.Conv2d(12, 16, 1), nn.Conv2d(16, 12, 1)
        self.same = nn.Conv2d(12, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.b(self.a(x).relu())
        x = x + self.same(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("rule", ["mean_in_sum_out", "sum_in_mean_out"])
@pytest.mark.parametrize("beta", [0.3, 0.5, 0.8])
def test_incremental_distances_merge_like_distances_measured_anew(rule, beta):
    model, image = Residual().eval(), torch.randn(1, 3, 8, 8)
    graph = build_graph(model, image)
    plain = copy.deepcopy(model)
    expected = plain_ifm(plain, list(graph.groups), beta, rule == "mean_in_sum_out")
    result = merge_units(model, graph, MergeConfig(beta=beta, rule=rule))
    assert {name: counts.tolist() for name, counts in result.counts.items()} == expected
    assert sum(len(kept) for kept in result.kept.values()) < sum(group.size for group in graph.groups)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def test_limits_stop_merging():
    model, image = build("resnet18")
    for options, least in (({"max_ratio": 0.25}, 0.75), ({"min_width": 40}, 40 / 64)):
        config = MergeConfig(beta=1, include=["layer1*"], **options)
        result, _, _ = merge(copy.deepcopy(model), image, config)
        assert {len(kept) for kept in result.kept.values()} == {int(64 * least)}


def test_include_and_exclude_choose_layers_and_must_match():
    model, image = build("resnet18")
    graph = build_graph(model, image)
    config = MergeConfig(beta=0.9, include=["layer3*", "layer4*"], exclude=["layer4.1.conv1"], max_ratio=0.05)
    result, _, _ = merge(copy.deepcopy(model), image, config)
    assert set(result.kept) == {g.name for g in graph.groups if g.name[:6] in ("layer3", "layer4")} - {
        "layer4.1.conv1:channels"
    }
    with pytest.raises(InputError, match=r"prune\.include.*'layer9\*'"):
        mergeable(graph, model, MergeConfig(include=["layer9*"]))


def test_tied_groups_are_left_whole_with_a_reason():
    model, image = build("resnet18")
    graph = build_graph(model, image)
    tie = ("layer1.0.conv1:channels", "layer1.1.conv1:channels")
    free = mergeable(replace(graph, ties=(tie,)), model, MergeConfig())
    assert {group.name for group in graph.groups} - {group.name for group in free.groups} == set(tie)
    assert {skip.layer for skip in free.skipped} >= {"layer1.0.conv1", "layer1.1.conv1"}


@pytest.mark.parametrize("bad", [{"beta": 1.5}, {"beta": -0.1}, {"rule": "sum"}, {"max_ratio": 0}, {"betta": 0.1}])
def test_configs_out_of_range_are_refused(bad):
    with pytest.raises(ValidationError):
        MergeConfig(**bad)


@pytest.mark.parametrize(
    ("name", "left"), [("resnet18", 0), ("mobilenetv2_050", 0), ("densenet121", None), ("regnety_002", 0)]
)
def test_folding_keeps_the_output_and_activations(name, left):
    model, image = build(name)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with torch.no_grad():
        before = model(image)
    pairs = fold_all(model, image)
    rest = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert rest == norms - len(pairs) and pairs
    assert rest == left if left is not None else rest > 0  # DenseNet's norms over joined features stay
    with torch.no_grad():
        torch.testing.assert_close(model(image), before, rtol=1e-4, atol=1e-4)


class Unfoldable(nn.Module):
    """Norms that must stay: one shared by two layers, one whose input is read elsewhere, one before its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.shared, self.read, self.before = (nn.BatchNorm2d(3) for _ in range(3))
        self.good, self.folds = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.a(x)) + self.shared(self.b(x))
        x = self.c(self.before(x))
        x = self.read(x) + x
        return self.folds(self.good(x)).mean((2, 3))


def test_only_norms_that_alone_read_a_layer_are_folded():
    assert foldable_pairs(Unfoldable(), torch.randn(1, 3, 4, 4)) == (("good", "folds"),)
