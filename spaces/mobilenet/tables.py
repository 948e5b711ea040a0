"""MobileNets as tables of rows: the published ones, and what any table costs without building it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluators.tasks import Task
from spaces.layers import Layer, conv, halved, linear

Activation = Literal["relu", "relu6", "hswish", "silu", "none"]
Skip = Literal["identity", "pool", "none"]


def round8(value: float) -> int:
    """Round to a multiple of 8, at least 8, losing at most a tenth (MobileNetV2's width rule)."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def up8(value: float) -> int:
    """Round up to a multiple of 8 (LeYOLO's width rule)."""
    return 8 * math.ceil(value / 8)


@dataclass(frozen=True)
class BlockRow:
    """One block of a MobileNet.

    Attributes:
        kernel: side of the spatial (for `mbconv`: depthwise) kernel in pixels; odd.
        hidden: channels of the expansion; equal to the input's: no expansion layer. A plain `conv` has none.
        out: output channels.
        stride: 1 or 2.
        se: channels of the squeeze-and-excite bottleneck; 0 for none.
        activation: after every convolution but the linear projection; `none` for a linear plain convolution.
        operation: inverted residual, or one plain convolution with batch norm and activation.
        skip: `identity` adds the input where shapes allow; `pool` adds it average-pooled 3x3 with the block's stride,
            channels cut or filled with zeros; `none` adds nothing.
        dilation: of the spatial kernel.
        gate: of the squeeze-and-excite.
    """

    kernel: int
    hidden: int
    out: int
    stride: int = 1
    se: int = 0
    activation: Activation = "relu"
    operation: Literal["mbconv", "conv"] = "mbconv"
    skip: Skip = "identity"
    dilation: int = 1
    gate: Literal["hsigmoid", "sigmoid"] = "hsigmoid"


@dataclass(frozen=True)
class NetworkRows:
    """A whole MobileNet: 3x3 stem, stages of blocks, last 1x1 convolution, pooling, optional hidden layer, classifier.

    Attributes:
        stem: channels of the stem.
        blocks: the rows, stage by stage.
        last_conv: channels of the last 1x1 convolution.
        head: channels of the 1x1 convolution (bias, no norm) between pooling and classifier (V3); None for none (V2).
        dropout: probability of dropping a feature before the classifier in training.
    """

    stem: int
    blocks: tuple[tuple[BlockRow, ...], ...]
    last_conv: int
    head: int | None = None
    stem_stride: int = 2
    stem_activation: Activation = "relu6"
    last_activation: Activation = "relu6"
    head_activation: Activation = "hswish"
    dropout: float = 0.0


def mobilenet_v2(width: float = 1.0) -> NetworkRows:
    """Return MobileNetV2 with `width` times the channels (Sandler et al., table 2)."""
    channels = stem = round8(32 * width)
    stages = []
    for ratio, base, repeats, stride in _V2:
        out = round8(base * width)
        first = BlockRow(3, channels * ratio, out, stride, activation="relu6")
        rest = BlockRow(3, out * ratio, out, 1, activation="relu6")
        stages.append((first, *[rest] * (repeats - 1)))
        channels = out
    return NetworkRows(stem, tuple(stages), round8(1280 * max(1.0, width)), dropout=0.2)


def mobilenet_v3_large(width: float = 1.0) -> NetworkRows:
    """Return MobileNetV3-Large with `width` times the channels (Howard et al., table 1)."""
    return _mobilenet_v3(_V3_LARGE, width, 960, 1280)


def mobilenet_v3_small(width: float = 1.0) -> NetworkRows:
    """Return MobileNetV3-Small with `width` times the channels (Howard et al., table 2, no SE on its last conv)."""
    return _mobilenet_v3(_V3_SMALL, width, 576, 1024)


def layers(rows: NetworkRows, task: Task) -> list[Layer]:
    """Describe the whole network; `params` and `macs` add up to exactly those of `MobileNet(rows, task)`."""
    found = stage_layers(rows, task)
    return found + _top(rows, found[-1].out_channels, found[-1].size, task.num_outputs)


def stage_layers(rows: NetworkRows, task: Task) -> list[Layer]:
    """Describe stem and blocks; `params` and `macs` add up to exactly those of `Stages(rows, task.in_chans)`."""
    size = _after(task.img_size, rows.stem_stride)
    stem = conv(task.in_chans, rows.stem, 3, size)
    found = [Layer("stem", "conv k3", rows.stem, size, rows.stem_stride, stem.params, stem.macs)]
    channels = rows.stem
    for name, row in named_blocks(rows):
        found.append(block_layer(name, channels, row, size))
        channels, size = row.out, found[-1].size
    return found


def named_blocks(rows: NetworkRows) -> Iterator[tuple[str, BlockRow]]:
    """Yield `stage1.layer1`, `stage1.layer2`, ... with their rows."""
    for stage, blocks in enumerate(rows.blocks, 1):
        for layer, row in enumerate(blocks, 1):
            yield f"stage{stage}.layer{layer}", row


def block_layer(name: str, in_channels: int, row: BlockRow, size: int) -> Layer:
    """Describe one block that is handed maps of `size` x `size` pixels."""
    after = _after(size, row.stride)
    squeezed = row.out if row.operation == "conv" else row.hidden
    if row.operation == "conv":
        cost = conv(in_channels, row.out, row.kernel, after)
    else:
        cost = conv(row.hidden, row.hidden, row.kernel, after, groups=row.hidden) + conv(row.hidden, row.out, 1, after)
        if row.hidden != in_channels:
            cost += conv(in_channels, row.hidden, 1, size)
    if row.se:
        cost += linear(squeezed, row.se) + linear(row.se, squeezed)
    return Layer(name, _label(in_channels, row), row.out, after, row.stride, cost.params, cost.macs)


def _label(in_channels: int, row: BlockRow) -> str:
    kind = row.operation
    ratio = "" if kind == "conv" else f" e{row.hidden / in_channels:.3g}"
    return f"{kind} k{row.kernel}{ratio}{' se' if row.se else ''}"


def _top(rows: NetworkRows, channels: int, size: int, num_classes: int) -> list[Layer]:
    last = conv(channels, rows.last_conv, 1, size)
    found = [Layer("last", "conv k1", rows.last_conv, size, 1, last.params, last.macs)]
    features = rows.last_conv
    for name, out in (("head", rows.head), ("classifier", num_classes)):
        if out is not None:
            cost = linear(features, out)
            found.append(Layer(name, "linear", out, 1, 1, cost.params, cost.macs))
            features = out
    return found


def _after(size: int, stride: int) -> int:
    return halved(size) if stride == 2 else size


def _mobilenet_v3(table: Sequence[_V3Row], width: float, last_conv: int, head: int) -> NetworkRows:
    """Group the rows of a table into stages: each starts where the map is halved or the channels change.

    The table's expansion over its input is what stays when the widths change.
    """
    stages: list[list[BlockRow]] = []
    base, channels = 16, round8(16 * width)
    for kernel, hidden, out, squeeze, act, stride in table:
        exp = round8(channels * hidden / base)
        base, channels = out, round8(out * width)
        row = BlockRow(kernel, exp, channels, stride, round8(exp / 4) if squeeze else 0, act)
        if stages and stride == 1 and stages[-1][-1].out == row.out:
            stages[-1].append(row)
        else:
            stages.append([row])
    blocks = tuple(map(tuple, stages))
    wide = round8(head * max(1.0, width))
    return NetworkRows(round8(16 * width), blocks, round8(last_conv * width), wide, 2, "hswish", "hswish", dropout=0.2)


_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion ratio, output channels, layers, stride of the first."""

_V3Row = tuple[int, int, int, bool, Activation, int]
"""Kernel, expansion, output channels, squeeze-and-excite, activation, stride."""

_V3_LARGE: tuple[_V3Row, ...] = (
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hswish", 2),
    (3, 200, 80, False, "hswish", 1),
    (3, 184, 80, False, "hswish", 1),
    (3, 184, 80, False, "hswish", 1),
    (3, 480, 112, True, "hswish", 1),
    (3, 672, 112, True, "hswish", 1),
    (5, 672, 160, True, "hswish", 2),
    (5, 960, 160, True, "hswish", 1),
    (5, 960, 160, True, "hswish", 1),
)

_V3_SMALL: tuple[_V3Row, ...] = (
    (3, 16, 16, True, "relu", 2),
    (3, 72, 24, False, "relu", 2),
    (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "hswish", 2),
    (5, 240, 40, True, "hswish", 1),
    (5, 240, 40, True, "hswish", 1),
    (5, 120, 48, True, "hswish", 1),
    (5, 144, 48, True, "hswish", 1),
    (5, 288, 96, True, "hswish", 2),
    (5, 576, 96, True, "hswish", 1),
    (5, 576, 96, True, "hswish", 1),
)
