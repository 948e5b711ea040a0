from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from evaluators.cost import (
    count_macs,
    count_params,
    layer_macs,
    nonzero_macs,
    parameter_macs,
    uniform_equivalent_macs,
)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x)).mean((2, 3)))


CONV, LINEAR = 3 * 9 * 8 * 16, 8 * 5
IMAGES = torch.randn(4, 3, 4, 4)


def test_macs_are_those_of_one_image_and_of_products_only() -> None:
    model = Two().train()
    assert count_macs(model, IMAGES) == CONV + LINEAR
    assert model.training
    assert layer_macs(model, IMAGES) == {"conv": CONV, "linear": LINEAR}
    assert parameter_macs(model, IMAGES) == {"conv.weight": CONV, "linear.weight": LINEAR}


def test_attention_counts_the_same_fused_or_not() -> None:
    x = torch.randn(1, 3, 64, 64)
    counts = []
    for fused in (True, False):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
        for block in vit.blocks:
            block.attn.fused_attn = fused
        counts.append(count_macs(vit, x))
        own = layer_macs(vit, x)
        assert sum(own.values()) == counts[-1]
        assert own["blocks.0.attn"] == 2 * 17 * 17 * 192  # queries by keys, then weights by values
    assert counts[0] == counts[1]


def test_torchs_own_attention_is_not_hidden_by_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x = torch.randn(1, 6, 16)
    products = 2 * 6 * 6 * 16
    linear = 6 * (4 * 16 * 16 + 2 * 16 * 32)
    assert count_macs(layer, x) == products + linear
    found = parameter_macs(layer, x)
    assert found["self_attn.in_proj_weight"] == 6 * 3 * 256 and found["self_attn.out_proj.weight"] == 6 * 256


def test_standardised_weights_count_for_their_parameter() -> None:
    model = timm.create_model("resnetv2_50", layers=(1, 1, 1, 1))
    found = parameter_macs(model, torch.randn(1, 3, 32, 32))
    assert sum(found.values()) == count_macs(model, torch.randn(1, 3, 32, 32))
    assert {name for name, p in model.named_parameters() if p.ndim == 4} == set(found)


def test_parameters_are_counted_by_masks_not_by_zeros() -> None:
    model = Two()
    nn.init.zeros_(model.conv.bias)
    masks = {"linear.weight": torch.arange(40).view(5, 8) < 10}
    total = sum(p.numel() for p in model.parameters())
    assert count_params(model) == (total, total)
    assert count_params(model, masks) == (total, total - 30)


def test_macs_under_masks_are_layer_resolved_or_uniform() -> None:
    masks = {"conv.weight": torch.rand(8, 3, 3, 3) < 2, "linear.weight": torch.zeros(5, 8, dtype=torch.bool)}
    assert nonzero_macs(Two(), IMAGES, masks) == CONV
    assert uniform_equivalent_macs(Two(), IMAGES, masks) == round((CONV + LINEAR) * 216 / 256)
    assert nonzero_macs(Two(), IMAGES, {}) == uniform_equivalent_macs(Two(), IMAGES, {}) == CONV + LINEAR


def test_tokens_that_are_parameters_do_not_stop_the_count() -> None:
    model = timm.create_model("cait_xxs24_224", img_size=32, depth=1)
    model.norm.weight.requires_grad_(False)
    assert count_macs(model, torch.randn(1, 3, 32, 32)) > 0
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["norm.weight"]


@pytest.mark.parametrize("keep", [0.0, 0.25, 1.0])
def test_one_mask_gives_the_same_either_way(keep: float) -> None:
    mask = {"linear.weight": torch.arange(40).view(5, 8) < 40 * keep}
    expected = CONV + round(LINEAR * keep)
    assert nonzero_macs(Two(), IMAGES, mask) == uniform_equivalent_macs(Two(), IMAGES, mask) == expected
