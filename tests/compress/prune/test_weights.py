"""Weight pruning: exact counts, the same masks as a plain sort, N:M patterns, and refusals."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.criteria import weight_criteria
from compress.criteria.dimap import keep_most_relative, relative_distortion
from compress.criteria.exact_selection import keep_largest
from compress.prune.weights import WeightsConfig, prune_weights
from compress.training.masks import apply_masks


def plain_dimap(weights: list[Tensor], remove: int) -> list[Tensor]:
    """DIMAP as the paper words it: sort each layer, suffix sums, divide, concatenate, drop the k smallest."""
    scores = []
    for weight in weights:
        square, order = weight.double().flatten().square().sort(stable=True)
        suffix = square.flip(0).cumsum(0).flip(0)
        score = torch.where(suffix > 0, square / suffix, 0.0)
        scores.append(torch.empty_like(score).scatter_(0, order, score))
    return plain_select(scores, weights, remove)


def plain_select(scores: list[Tensor], weights: list[Tensor], remove: int) -> list[Tensor]:
    lowest = torch.cat([score.flatten() for score in scores]).sort(stable=True).indices[:remove]
    keep = torch.ones(sum(weight.numel() for weight in weights), dtype=torch.bool)
    keep[lowest] = False
    return [part.view(w.shape) for part, w in zip(keep.split([w.numel() for w in weights]), weights, strict=True)]


def _layers(kind: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 30), (120, 40), (7, 5, 3, 3), (1, 1), (300, 20)]
    layers = [torch.randn(shape, generator=generator) * 10.0 ** (2 - i) for i, shape in enumerate(shapes)]
    if kind == "ties":
        return [(layer * 3 / layer.abs().max()).round() for layer in layers]
    if kind == "zeros":
        return [torch.zeros(9, 9), *[torch.where(layer.abs() < layer.abs().median(), 0.0, layer) for layer in layers]]
    if kind == "mixed":
        return [layer.to((torch.float64, torch.float32)[i % 2]) for i, layer in enumerate(layers)]
    if kind == "extreme":
        return [layer * 10.0**power for layer, power in zip(layers, (-42, -20, 0, 15, 30), strict=True)]
    dtypes = {"double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}
    return [layer.to(dtypes.get(kind, torch.float32)) for layer in layers]


KINDS = ["normal", "ties", "zeros", "extreme", "double", "half", "bfloat16", "mixed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.15, 0.5, 0.9, 0.9999])
def test_dimap_gives_the_masks_of_a_plain_sort(kind, share):
    layers = _layers(kind)
    before = [layer.clone() for layer in layers]
    remove = int(share * sum(layer.numel() for layer in layers))
    masks = keep_most_relative(layers, remove)
    assert all(torch.equal(layer, copy) for layer, copy in zip(layers, before, strict=True))
    assert sum(int((~mask).sum()) for mask in masks) == remove
    for mask, plain in zip(masks, plain_dimap(layers, remove), strict=True):
        assert torch.equal(mask, plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_selection_by_score_gives_the_masks_of_a_plain_sort(kind, share):
    scores = [layer.abs() for layer in _layers(kind)]
    remove = int(share * sum(score.numel() for score in scores))
    for mask, plain in zip(keep_largest(scores, remove), plain_select(scores, scores, remove), strict=True):
        assert torch.equal(mask, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_largest_weight_of_a_layer_scores_exactly_one_and_order_is_magnitude(kind):
    for layer in _layers(kind):
        score = relative_distortion(layer)
        assert score.dtype == torch.float64 and score.shape == layer.shape
        assert score.max() == (1 if layer.any() else 0)
        by_magnitude = score.flatten()[layer.abs().flatten().sort(stable=True).indices]
        assert (by_magnitude.diff() >= 0).all()


def test_scores_of_a_large_layer_keep_their_digits():
    score = relative_distortion(torch.randn(768, 3072, generator=torch.Generator().manual_seed(0)) * 0.02)
    assert score.max() == 1 and score.min() >= 0


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.ModuleList([nn.TransformerEncoderLayer(16 * 2**i, 2, 64) for i in range(2)])
    return nn.ModuleDict({"blocks": encoder, "head": nn.Linear(32, 4)})


@pytest.mark.parametrize("criterion", weight_criteria.names())
@pytest.mark.parametrize("allocation", [None, "module", "global", "uniform"])
@pytest.mark.parametrize("sparsity", [0.1, 0.55, 0.873])
def test_every_pool_loses_its_exact_share(model, criterion, allocation, sparsity):
    pruning = prune_weights(model, WeightsConfig(criterion=criterion, allocation=allocation, sparsity=sparsity))
    used = allocation or weight_criteria.get(criterion).allocation
    pools: dict[str, list[int]] = {}
    for row in pruning.rows:
        pool = pools.setdefault({"module": row.module, "global": "", "uniform": row.name}[used], [0, 0])
        pool[0] += row.size
        pool[1] += row.kept
        assert row.kept == int(pruning.masks[row.name].sum())
    assert all(size - kept == round(sparsity * size) for size, kept in pools.values())


def test_defaults_of_allocation():
    defaults = {name: weight_criteria.get(name).allocation for name in weight_criteria}
    assert defaults == {"dimap": "module", "lamp": "global", "magnitude": "uniform", "random": "uniform"}


def test_dimap_as_one_pool_is_lamp(model):
    whole = prune_weights(model, WeightsConfig(sparsity=0.5, allocation="global")).masks
    lamp = prune_weights(model, WeightsConfig(sparsity=0.5, criterion="lamp")).masks
    assert all(torch.equal(whole[name], lamp[name]) for name in lamp)


def test_the_model_itself_is_not_changed_and_random_follows_the_seed(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = WeightsConfig(sparsity=0.5, criterion="random")
    first, again, other = (prune_weights(model, config, seed=seed).masks for seed in (1, 1, 2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_table_covers_the_model_and_is_json(model):
    pruning = prune_weights(model, WeightsConfig(sparsity=0.5))
    named = [*pruning.masks, *(skip.name for skip in pruning.skipped)]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert pruning.kept_by("module") == pytest.approx({"QKV-M": 0.5, "PRJ-M": 0.5, "MLP-M": 0.5}, abs=1e-3)
    assert list(pruning.kept_by("stage")) == ["blocks.0", "blocks.1"]
    assert "QKV-M blocks.1" in pruning.kept_by("module", "stage")
    table = json.loads(json.dumps(pruning.to_dict()))
    assert table["removed"] == sum(row["size"] - row["kept"] for row in table["layers"])


def test_channels_last_weights_get_the_same_masks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    config = WeightsConfig(sparsity=0.5)
    plain = prune_weights(net, config).masks
    other = prune_weights(net.to(memory_format=torch.channels_last), config).masks
    assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "1:2"])
@pytest.mark.parametrize("criterion", weight_criteria.names())
def test_n_of_m_keeps_the_n_best_of_every_m_input_channels(pattern, criterion):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 12, 3), nn.Conv2d(12, 16, 1, groups=2), nn.Linear(16, 8), nn.Linear(8, 2))
    kept, group = map(int, pattern.split(":"))
    pruning = prune_weights(net, WeightsConfig(pattern=pattern, criterion=criterion))
    assert "0.weight" in pruning.masks and "2.weight" in pruning.masks
    for name, mask in pruning.masks.items():
        groups = mask.movedim(1, -1).reshape(-1, group)
        assert (groups.sum(1) == kept).all()
        if criterion != "random":
            values = net.get_parameter(name).detach().abs().movedim(1, -1).reshape(-1, group)
            assert torch.equal(values.sort(dim=1).values[:, -kept:], values[groups].view(-1, kept).sort(dim=1).values)


def test_n_of_m_names_the_layers_that_do_not_divide():
    net = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ConvTranspose2d(8, 8, 3), nn.Linear(8, 8), nn.Linear(8, 2))
    pruning = prune_weights(net, WeightsConfig(pattern="2:4"))
    assert list(pruning.masks) == ["2.weight"]
    reasons = {skip.name: skip.reason for skip in pruning.skipped}
    assert reasons["0.weight"] == "6 input channels are not divisible by 4"
    assert "transposed" in reasons["1.weight"]


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({}, "exactly one of sparsity and pattern"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "exactly one of sparsity and pattern"),
        ({"sparsity": 1.5}, "less than 1"),
        ({"sparsity": 0}, "greater than 0"),
        ({"pattern": "2-4"}, "pattern"),
        ({"pattern": "4:4"}, "removes nothing"),
        ({"pattern": "2:4", "allocation": "global"}, "allocation"),
        ({"sparsity": 0.5, "criterion": "dimp"}, "'dimap', 'lamp', 'magnitude' or 'random'"),
        ({"sparsity": 0.5, "allocation": "stage"}, "allocation"),
        ({"sparsity": 0.5, "sparsty": 0.5}, "sparsty"),
    ],
)
def test_config_refuses(keys, match):
    with pytest.raises(ValidationError, match=match):
        WeightsConfig(**keys)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(model, value):
    with torch.no_grad():
        model["blocks"][1].linear2.weight[3, 3] = value
        model["head"].bias[0] = value
    with pytest.raises(InputError) as caught:
        prune_weights(model, WeightsConfig(sparsity=0.5))
    assert len(caught.value.problems) == 2 and "'blocks.1.linear2.weight'" in caught.value.problems[0]


def test_nothing_to_prune_is_refused_with_the_reasons():
    with pytest.raises(InputError, match="classifier"):
        prune_weights(nn.Linear(4, 4), WeightsConfig(sparsity=0.5))


def test_a_module_cannot_vanish(model):
    rules = {"all": ["blocks.0.linear1"]}
    with pytest.raises(InputError, match="removes all 1024 weights of all"):
        prune_weights(model, WeightsConfig(sparsity=0.9999, modules=rules))


def test_masked_model_has_the_counted_zeros(model):
    pruning = prune_weights(model, WeightsConfig(sparsity=0.4))
    apply_masks(model, pruning.masks)
    zeros = sum(int((model.get_parameter(row.name) == 0).sum()) for row in pruning.rows)
    assert zeros == sum(row.size - row.kept for row in pruning.rows)
