"""MobileNet parts: rounding, activations, blocks and shortcuts, costs of rows, LR-ASPP."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from evaluators.cost import count_macs, count_params
from spaces.mobilenet.blocks import Bottleneck, ConvBlock, SqueezeExcite, activation, block, same_conv
from spaces.mobilenet.network import MobileNet
from spaces.mobilenet.sliced import bottleneck, conv_block, crop
from spaces.mobilenet.tables import BlockRow, NetworkRows, layers, mobilenet_v2, mobilenet_v3_small, round8
from spaces.space import task_of

SMALL = NetworkRows(
    16,
    (
        (BlockRow(3, 16, 16, 1),),
        (BlockRow(5, 48, 24, 2, 8, "hswish"), BlockRow(3, 0, 24, 1, 6, operation="conv", gate="sigmoid")),
        (BlockRow(3, 24, 32, 2, skip="pool"), BlockRow(1, 0, 16, 2, activation="none", operation="conv")),
    ),
    64,
    32,
)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("value", "rounded"), [(72 / 4, 24), (120 / 4, 32), (672 / 4, 168), (16 / 4, 8), (1, 8), (115.2, 112)]
)
def test_round8(value: float, rounded: int) -> None:
    assert round8(value) == rounded


def test_hswish() -> None:
    found = activation("hswish")(torch.tensor([-4.0, -3.0, 0.0, 1.0, 3.0, 5.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 0.0, 2 / 3, 3.0, 5.0]))


def test_block_without_expansion_has_no_expansion_layer() -> None:
    names = {name.split(".")[0] for name in Bottleneck(16, BlockRow(3, 16, 24)).state_dict()}
    assert names == {"depthwise", "depthwise_norm", "project", "project_norm"}


@pytest.mark.parametrize(
    ("row", "added"),
    [
        (BlockRow(3, 32, 16), True),
        (BlockRow(3, 32, 16, skip="none"), False),
        (BlockRow(3, 32, 16, 2), False),
        (BlockRow(3, 32, 24), False),
    ],
)
def test_identity_is_added_only_where_shapes_allow(row: BlockRow, added: bool) -> None:
    module = Bottleneck(16, row)
    nn.init.zeros_(module.project_norm.weight)
    x = images(2, 16, 8, 8)
    out = module(x)
    assert torch.equal(out, x if added else torch.zeros_like(out))


@pytest.mark.parametrize("out", [8, 16, 24])
def test_pooled_shortcut_cuts_or_fills_channels(out: int) -> None:
    module = Bottleneck(16, BlockRow(3, 32, out, 2, skip="pool"))
    nn.init.zeros_(module.project_norm.weight)
    x = images(2, 16, 7, 7)
    found, pooled = module(x), nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    kept = min(out, 16)
    assert found.shape == (2, out, 4, 4)
    assert torch.equal(found[:, :kept], pooled[:, :kept])
    assert not found[:, kept:].any()


def test_squeeze_excite_gates_by_the_average() -> None:
    module = SqueezeExcite(4, 2)
    nn.init.zeros_(module.restore.weight)
    assert module.restore.bias is not None
    nn.init.constant_(module.restore.bias, 1.5)
    x = images(2, 4, 3, 3)
    torch.testing.assert_close(module(x), x * 0.75)


@pytest.mark.parametrize("size", [32, 37, 111])
def test_rows_cost_what_the_network_costs(size: int) -> None:
    for rows in (SMALL, mobilenet_v2(0.35), mobilenet_v3_small(0.75), replace(SMALL, stem_stride=1, head=None)):
        task = task_of(7, 1, size)
        with torch.device("meta"):
            network = MobileNet(rows, task).eval()
            counted = count_params(network)[0], count_macs(network, torch.empty(1, 1, size, size))
        described = layers(rows, task)
        assert counted == (sum(row.params for row in described), sum(row.macs for row in described))


def test_rows_tell_the_sizes_of_maps() -> None:
    found = {row.name: (row.out_channels, row.size) for row in layers(SMALL, task_of(10, 3, 37))}
    x = images(2, 3, 37, 37)
    network = MobileNet(SMALL, task_of(10, 3, 37)).eval()
    for stage, rows in enumerate(SMALL.blocks):
        for layer in range(len(rows)):
            shape = network.tapped(x, (stage, layer))[1].shape
            assert found[f"stage{stage + 1}.layer{layer + 1}"] == (shape[1], shape[2])
    assert found["last"] == (64, network.features(x).shape[2])


def test_dropout_acts_in_training_only() -> None:
    network = MobileNet(replace(SMALL, dropout=0.9), task_of(10, 3, 32))
    x = images(2, 3, 32, 32)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eval()
    nn.init.normal_(network.classifier.weight)
    assert not torch.equal(network(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize(
    "row", [BlockRow(3, 24, 16, 2, 4), BlockRow(5, 36, 12, 1, skip="pool"), BlockRow(3, 24, 12, 1, 3)]
)
def test_sliced_blocks_equal_small_ones_with_the_cropped_weights(row: BlockRow) -> None:
    x, plain = images(2, 12, 8, 8), replace(row, operation="conv")
    largest = BlockRow(5, 96, 24, 2, 8)
    whole, whole_conv = Bottleneck(16, largest), ConvBlock(16, replace(largest, operation="conv"))
    for large, small in ((whole, block(12, row)), (whole_conv, block(12, plain))):
        shared = large.state_dict()
        small.load_state_dict({name: crop(shared[name], value.shape) for name, value in small.state_dict().items()})
        expected = small(x)
        found = bottleneck(large, x, row) if isinstance(large, Bottleneck) else conv_block(large, x, plain)
        assert torch.equal(found, expected)
        after = {name: crop(large.state_dict()[name], value.shape) for name, value in small.state_dict().items()}
        torch.testing.assert_close(after, dict(small.state_dict()))


def test_spatial_convolution_keeps_the_size_under_dilation() -> None:
    assert same_conv(4, 4, BlockRow(5, 4, 4, dilation=2), groups=4)(images(1, 4, 9, 9)).shape[-1] == 9
