from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, deform_conv2d

from evaluators.cost import count_macs, count_params, parameter_macs


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x)).mean((2, 3)))


def share_of(model: nn.Module, images: Tensor, *names: str) -> int:
    """Return the MACs that go when nothing is left of the parameters `names`."""
    masks = {name: torch.zeros_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    macs = parameter_macs(model, images)
    assert macs.total == count_macs(model, images)
    return macs.total - macs.nonzero(masks)


CONV, LINEAR = 3 * 9 * 8 * 16, 8 * 5
IMAGES = torch.randn(4, 3, 4, 4)


def test_macs_are_those_of_one_image_and_of_products_only() -> None:
    model = Two().train()
    assert count_macs(model, IMAGES) == CONV + LINEAR
    assert model.training
    assert share_of(model, IMAGES, "conv.weight") == CONV
    assert share_of(model, IMAGES, "linear.weight") == LINEAR


def test_attention_counts_the_same_fused_or_not() -> None:
    x = torch.randn(1, 3, 64, 64)
    counts = []
    for fused in (True, False):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
        for block in vit.blocks:
            block.attn.fused_attn = fused
        counts.append(count_macs(vit, x))
        names = [name for name, p in vit.named_parameters() if name.endswith("weight") and p.ndim > 1]
        assert counts[-1] - share_of(vit, x, *names) == 2 * 2 * 17 * 17 * 192  # queries by keys, weights by values
    assert counts[0] == counts[1]


def test_torchs_own_attention_is_not_hidden_by_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x = torch.randn(1, 6, 16)
    products = 2 * 6 * 6 * 16
    linear = 6 * (4 * 16 * 16 + 2 * 16 * 32)
    assert count_macs(layer, x) == products + linear
    assert share_of(layer, x, "self_attn.in_proj_weight") == 6 * 3 * 256
    assert share_of(layer, x, "self_attn.out_proj.weight") == 6 * 256


def test_standardised_weights_count_for_their_parameter() -> None:
    model = timm.create_model("resnetv2_50", layers=(1, 1, 1, 1))
    x, names = torch.randn(1, 3, 32, 32), [name for name, p in model.named_parameters() if p.ndim == 4]
    assert share_of(model, x, *names) == count_macs(model, x)
    assert all(share_of(model, x, name) > 0 for name in names)


def test_parameters_are_counted_by_masks_not_by_zeros() -> None:
    model = Two()
    nn.init.zeros_(model.conv.bias)
    masks = {"linear.weight": torch.arange(40).view(5, 8) < 10}
    total = sum(p.numel() for p in model.parameters())
    assert count_params(model) == (total, total)
    assert count_params(model, masks) == (total, total - 30)


def test_macs_under_masks_are_layer_resolved_or_uniform() -> None:
    masks = {"conv.weight": torch.rand(8, 3, 3, 3) < 2, "linear.weight": torch.zeros(5, 8, dtype=torch.bool)}
    macs = parameter_macs(Two(), IMAGES)
    assert macs.nonzero(masks) == CONV
    assert macs.uniform_equivalent(masks) == round((CONV + LINEAR) * 216 / 256)
    assert macs.nonzero({}) == macs.uniform_equivalent({}) == macs.total == CONV + LINEAR


def test_tokens_that_are_parameters_do_not_stop_the_count() -> None:
    model = timm.create_model("cait_xxs24_224", img_size=32, depth=1)
    model.norm.weight.requires_grad_(False)
    assert count_macs(model, torch.randn(1, 3, 32, 32)) > 0
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["norm.weight"]


@pytest.mark.parametrize("keep", [0.0, 0.25, 1.0])
def test_one_mask_gives_the_same_either_way(keep: float) -> None:
    mask = {"linear.weight": torch.arange(40).view(5, 8) < 40 * keep}
    expected = CONV + round(LINEAR * keep)
    macs = parameter_macs(Two(), IMAGES)
    assert macs.nonzero(mask) == macs.uniform_equivalent(mask) == expected


class Calling(nn.Module):
    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*self.layers, *inputs)


EMBED, TOKENS = 16, 10
ATTENTION = 4 * TOKENS * EMBED**2 + 2 * TOKENS**2 * EMBED
MATRIX = torch.randn(5, 8)
PRODUCTS = [
    ("1-D convolution", nn.Conv1d(8, 12, 3, stride=2, padding=1, groups=2), (8, 20), 10 * 12 * 4 * 3),
    ("3-D convolution", nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 1)), (4, 5, 6, 7), 5 * 6 * 7 * 6 * 4 * 9),
    ("1-D transposed", nn.ConvTranspose1d(8, 12, 4, 2, 1, groups=2), (8, 10), 10 * 8 * 6 * 4),
    ("3-D transposed", nn.ConvTranspose3d(4, 6, 2, 2), (4, 3, 3, 3), 27 * 4 * 6 * 8),
    ("attention", Calling(lambda m, x: m(x, x, x)[0], nn.MultiheadAttention(EMBED, 4, batch_first=True)),
     (TOKENS, EMBED), ATTENTION),
    ("encoder", nn.TransformerEncoder(nn.TransformerEncoderLayer(EMBED, 4, 32, batch_first=True), 2),
     (TOKENS, EMBED), 2 * (ATTENTION + 2 * TOKENS * EMBED * 32)),
    ("masked attention", Calling(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
     (4, TOKENS, 4), 2 * TOKENS**2 * EMBED),
    ("grouped queries", Calling(lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True)),
     (4, TOKENS, 4), 2 * TOKENS**2 * EMBED),
    ("LSTM", nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), (5, 8), 5 * 4 * 6 * 2 * (14 + 18)),
    ("GRU", nn.GRU(8, 6, batch_first=True), (5, 8), 5 * 3 * 6 * 14),
    ("bilinear", Calling(lambda m, x: m(x, x), nn.Bilinear(8, 8, 3)), (8,), 3 * 8 * (8 + 1)),
    ("matrix by vector", Calling(lambda x: MATRIX @ x[0]), (8,), 40),
    ("vector by vector", Calling(lambda x: x[0] @ MATRIX[0]), (8,), 8),
    ("einsum", Calling(lambda x: torch.einsum("bchw,kc->bkhw", x, MATRIX)), (8, 3, 3), 9 * 40),
    ("unfolded", Calling(lambda x: MATRIX[:, :1].expand(5, 36) @ F.unfold(x, 3)), (4, 6, 6), 5 * 36 * 16),
    ("deformable", Calling(lambda m, x: m(x, torch.zeros(len(x), 18, 8, 8)), DeformConv2d(4, 6, 3, padding=1)),
     (4, 8, 8), 64 * 6 * 4 * 9),
    ("deformable, grouped", Calling(lambda x: deform_conv2d(x, torch.zeros(len(x), 18, 8, 8), torch.ones(6, 2, 3, 3),
     padding=1)), (4, 8, 8), 64 * 6 * 2 * 9),
]  # fmt: skip


@pytest.mark.parametrize(("model", "shape", "macs"), [row[1:] for row in PRODUCTS], ids=[row[0] for row in PRODUCTS])
def test_macs_are_those_of_arithmetic(model: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert count_macs(model, torch.randn(2, *shape)) == macs


def test_several_inputs_and_an_input_that_is_changed_in_place() -> None:
    pair = Calling(lambda m, image, scale: {"y": m(image.mul_(scale))}, nn.Conv2d(3, 8, 3, padding=1))
    images, scale = torch.ones(1, 3, 4, 4), torch.tensor([2.0, 2.0, 2.0, 2.0])
    assert count_macs(pair, (images, scale)) == CONV
    assert bool((images == 1).all())
