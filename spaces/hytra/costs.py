"""Parameters and MACs of a plan. Attention's two matrix products count, as in the published figures."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.tasks import Task
from spaces.hytra.config import HyTraConfig
from spaces.hytra.layer_plans import LayerPlan, stem_size
from spaces.hytra.operations import Style, squeezed, style_of
from spaces.layers import Cost, Layer, conv, halved, linear


def describe(config: HyTraConfig, plan: Sequence[LayerPlan], task: Task) -> list[Layer]:
    """Return the rows of a whole network: stem, layers, head."""
    style = style_of(config)
    rows = [_stem(config, task)]
    for row in plan:
        cost = _patches(config, row) + _layer(row, style)
        words = _words(row, style)
        stride = row.stride * (row.patch or 1)
        rows.append(Layer(row.name, words, row.channels, row.size, stride, cost.params, cost.macs))
    head = linear(plan[-1].channels, task.num_outputs)
    return [*rows, Layer("head", "average, linear", task.num_outputs, 1, plan[-1].size, head.params, head.macs)]


def _stem(config: HyTraConfig, task: Task) -> Layer:
    large = config.stem == "imagenet"
    size = halved(task.img_size) if large else task.img_size
    cost = conv(task.in_chans, config.stem_channels, 7 if large else 3, size)
    words = "conv 7x7, max pool 3x3" if large else "conv 3x3"
    stride = 4 if large else 1
    return Layer("stem", words, config.stem_channels, stem_size(config, task.img_size), stride, cost.params, cost.macs)


def _patches(config: HyTraConfig, row: LayerPlan) -> Cost:
    if not row.patch:
        return Cost()
    stem = config.stem_channels
    depthwise = conv(stem, stem, row.patch, row.in_size, groups=stem, norm=False)
    return depthwise + conv(stem, row.in_channels, 1, row.in_size)


def _layer(row: LayerPlan, style: Style) -> Cost:
    if row.operation == "empty":
        return conv(row.in_channels, row.channels, 3, row.size)
    return _entry(row, style) + (_attention(row) if row.operation == "attention" else _convolution(row, style))


def _entry(row: LayerPlan, style: Style) -> Cost:
    width = row.channels // 4
    reduce = conv(row.in_channels, width, 1, row.in_size, norm=False)
    position = conv(width, width, 3, row.size, groups=width, bias=True)
    if row.stride == 1 and row.in_channels == row.channels:
        return reduce + position
    kernel = 3 if row.stride == 2 and not style.pooled else 1
    return reduce + position + conv(row.in_channels, row.channels, kernel, row.size)


def _convolution(row: LayerPlan, style: Style) -> Cost:
    width = row.channels // 4
    cost = conv(width, width, 3, row.size) + conv(width, row.channels, 1, row.size)
    if style.se:
        inside = squeezed(row.channels)
        cost += linear(row.channels, inside) + linear(inside, row.channels)
    return cost


def _attention(row: LayerPlan) -> Cost:
    width, positions = row.channels // 4, row.size**2
    products = Cost(2 * width, 2 * positions**2 * width)  # the parameters are the batch norm's behind them
    return conv(width, 3 * width, 1, row.size, norm=False) + products + conv(width, row.channels, 1, row.size)


def _words(row: LayerPlan, style: Style) -> str:
    if row.operation == "attention":
        return f"ResAtt, {row.channels // 4 // style.head_dim} heads"
    if row.operation == "conv":
        return "ResConv with SE" if style.se else "ResConv"
    return "conv 3x3"
