"""DIMAP's published and recomputed figures on timm's Swin (He and Zhou, ICLR 2024, table 2 and appendix B)."""

from __future__ import annotations

from functools import lru_cache

import pytest
import timm
import torch
from torch import Tensor, nn

from compress.criteria.dimap import relative_distortion
from compress.prune.weights import WeightPruning, WeightsConfig, prune_weights
from compress.training.masks import apply_masks

MODULES = {
    "tiny": {"QKV-M": 6_469_632, "PRJ-M": 2_156_544, "MLP-M": 17_252_352},
    "small": {"QKV-M": 11_778_048, "PRJ-M": 3_926_016, "MLP-M": 31_408_128},
    "base": {"QKV-M": 20_938_752, "PRJ-M": 6_979_584, "MLP-M": 55_836_672},
}
PARAMS = {"tiny": 28_288_354, "small": 49_606_258, "base": 87_768_224}
# share of all parameters that is cut, in per cent, as printed in the paper
PRINTED = {"tiny": (13.7, 32.0, 50.3), "small": (14.2, 33.2, 52.2), "base": (14.3, 33.4, 52.5)}
RATIOS = (0.15, 0.35, 0.55)
TINY_ZEROS = {0.15: 3_881_779, 0.35: 9_057_485, 0.55: 14_233_190}
# kept fraction of stages 1-4 with independent N(0, 0.02^2) weights, the same for all three modules
KEPT = {
    ("tiny", 0.15): (0.975, 0.951, 0.901, 0.804),
    ("tiny", 0.35): (0.940, 0.878, 0.760, 0.549),
    ("tiny", 0.45): (0.918, 0.835, 0.679, 0.430),
    ("tiny", 0.55): (0.889, 0.782, 0.587, 0.320),
    ("small", 0.15): (0.971, 0.941, 0.883, 0.769),
    ("small", 0.35): (0.928, 0.856, 0.716, 0.483),
    ("small", 0.45): (0.902, 0.804, 0.624, 0.362),
    ("small", 0.55): (0.870, 0.744, 0.524, 0.259),
}


@lru_cache(maxsize=1)  # one model in memory at a time
def _swin(size: str) -> nn.Module:
    """Return timm's Swin with independent normal weights in every linear layer."""
    with torch.device("meta"):
        model = timm.create_model(f"swin_{size}_patch4_window7_224", pretrained=False)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    return model


def _prune(size: str, ratio: float) -> WeightPruning:
    return prune_weights(_swin(size), WeightsConfig(criterion="dimap", sparsity=ratio))


@pytest.mark.parametrize("size", ["base", "tiny", "small"])
def test_counts_and_parameter_cuts_of_the_table(size):
    assert sum(parameter.numel() for parameter in _swin(size).parameters()) == PARAMS[size]
    for ratio, printed in zip(RATIOS, PRINTED[size], strict=True):
        pruning = _prune(size, ratio)
        sizes: dict[str, int] = {}
        kept: dict[str, int] = {}
        for row in pruning.rows:
            sizes[row.module] = sizes.get(row.module, 0) + row.size
            kept[row.module] = kept.get(row.module, 0) + row.kept
        assert sizes == MODULES[size]
        assert all(sizes[module] - kept[module] == round(ratio * sizes[module]) for module in sizes)
        removed = sum(int((~mask).sum()) for mask in pruning.masks.values())
        assert abs(removed - ratio * sum(sizes.values())) <= 3
        assert 100 * removed / PARAMS[size] == pytest.approx(printed, abs=0.05)
        if size == "tiny":
            assert abs(removed - TINY_ZEROS[ratio]) <= 3


@pytest.mark.parametrize("size", ["small", "tiny"])  # each begins with the model that the last test ended with
def test_kept_fraction_per_stage_with_independent_weights(size):
    for (name, ratio), expected in KEPT.items():
        if name != size:
            continue
        pruning = _prune(size, ratio)
        assert list(pruning.kept_by("stage").values()) == pytest.approx(expected, abs=0.005)
        both = pruning.kept_by("module", "stage")
        for module in MODULES[size]:
            for stage, fraction in enumerate(expected):
                assert both[f"{module} layers.{stage}"] == pytest.approx(fraction, abs=0.005)


def _plain_masks(model: nn.Module, pruning: WeightPruning, ratio: float) -> dict[str, Tensor]:
    """Return masks by the plainest form of the method: sort, suffix sums, divide, one k-th value."""
    masks = {}
    for module in ("QKV-M", "PRJ-M", "MLP-M"):
        names = [row.name for row in pruning.rows if row.module == module]
        scores = []
        for name in names:
            square, order = model.get_parameter(name).detach().double().square().flatten().sort(stable=True)
            scores.append(torch.empty_like(square).scatter_(0, order, square / square.flip(0).cumsum(0).flip(0)))
        flat = torch.cat(scores)
        threshold = flat.kthvalue(round(ratio * flat.numel())).values
        masks.update({name: (score > threshold) for name, score in zip(names, scores, strict=True)})
    return masks


def test_masks_equal_the_plain_method_on_every_weight():
    model = _swin("tiny")
    pruning = _prune("tiny", 0.55)
    plain = _plain_masks(model, pruning, 0.55)
    assert plain.keys() == pruning.masks.keys()
    assert all(torch.equal(mask.flatten(), plain[name]) for name, mask in pruning.masks.items())


def test_masks_do_not_see_a_layers_scale():
    model = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False)
    config = WeightsConfig(sparsity=0.45)
    before = prune_weights(model, config)
    with torch.no_grad():
        for index, row in enumerate(before.rows):
            model.get_parameter(row.name).mul_(2.0 ** (index % 17 - 8))  # powers of two: exact in floating point
    after = prune_weights(model, config)
    assert all(torch.equal(mask, after.masks[name]) for name, mask in before.masks.items())
    with torch.no_grad():
        for index, row in enumerate(before.rows):
            model.get_parameter(row.name).mul_(0.3 + 0.1 * index)
    rounded = prune_weights(model, config)
    moved = sum(int((mask != rounded.masks[name]).sum()) for name, mask in before.masks.items())
    assert moved <= 1e-5 * sum(row.size for row in before.rows)


def test_order_within_a_layer_is_magnitude_and_no_layer_vanishes():
    model = _swin("tiny")
    for name, mask in _prune("tiny", 0.55).masks.items():
        weight = model.get_parameter(name).detach().abs()
        assert weight[mask].min() >= weight[~mask].max()
        assert mask.flatten()[weight.argmax()]
    for name in ("layers.0.blocks.0.attn.proj.weight", "layers.3.blocks.1.mlp.fc2.weight"):
        assert relative_distortion(model.get_parameter(name)).max() == 1


def test_everything_outside_the_three_modules_is_bit_identical():
    model = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruning = prune_weights(model, WeightsConfig(sparsity=0.55))
    apply_masks(model, pruning.masks)
    for name, value in model.state_dict().items():
        if name in pruning.masks:
            assert int((value == 0).sum()) >= int((~pruning.masks[name]).sum())
        else:
            assert torch.equal(value, before[name])
    kept = {skip.name for skip in pruning.skipped}
    assert {"patch_embed.proj.weight", "head.fc.weight", "layers.1.downsample.reduction.weight"} <= kept
    assert {f"layers.{s}.blocks.0.attn.relative_position_bias_table" for s in range(4)} <= kept
