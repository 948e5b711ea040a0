"""Parameters and MACs of a NASNet by arithmetic, row by row."""

from __future__ import annotations

from evaluators.tasks import Task
from spaces.layers import Cost, Layer, conv, halved, linear
from spaces.nasnet.genotype import CellGenotype, Genotype
from spaces.nasnet.operations import has_weights, kernel_of
from spaces.nasnet.options import NASNetConfig
from spaces.nasnet.parts import AUXILIARY_WIDTHS
from spaces.nasnet.skeleton import Site, Source, auxiliary_position, auxiliary_size, map_sizes, sites, sources


def layers(config: NASNetConfig, genotype: Genotype, task: Task) -> list[Layer]:
    """Return the rows of the whole network: stem, cells, the auxiliary head if there is one, classifier."""
    maps, sizes = sources(config, genotype), map_sizes(config, task.img_size)
    rows = [_stem(config, task, sizes[0])]
    for site in sites(config):
        first, second = site.inputs
        cost = cell_cost(site, genotype.cell(site.kind), maps[first], maps[second], sizes[first])
        position = len(rows)
        rows.append(
            Layer(
                site.name, f"{site.kind} cell", maps[position].channels, sizes[position], site.stride, cost.params,
                cost.macs,
            )
        )  # fmt: skip
    if config.auxiliary:
        rows.append(_auxiliary_head(maps[auxiliary_position(config)], auxiliary_size(config, task.img_size), task))
    head = linear(maps[-1].channels, task.num_outputs)
    return [*rows, Layer("classifier", "linear", task.num_outputs, 1, sizes[-1], head.params, head.macs)]


def _stem(config: NASNetConfig, task: Task, size: int) -> Layer:
    cost = conv(task.in_chans, config.first_channels, 3, size)
    stride = 1 if config.stem == "cifar" else 2
    return Layer("stem", "conv 3x3", config.first_channels, size, stride, cost.params, cost.macs)


def _auxiliary_head(source: Source, size: int, task: Task) -> Layer:
    """Return the row of the auxiliary head, which has parameters but computes nothing outside training."""
    narrow, wide = AUXILIARY_WIDTHS
    cost = conv(source.channels, narrow, 1, size) + conv(narrow, wide, size, 1) + linear(wide, task.num_outputs)
    return Layer("auxiliary_head", "in training only", task.num_outputs, 1, 1, cost.params, 0)


def cell_cost(site: Site, genotype: CellGenotype, first: Source, second: Source, size: int) -> Cost:
    """Return the cost of a cell whose state 0 has `size` x `size` pixels."""
    live = genotype.live()
    widths = genotype.widths(site.channels, second.channels if site.first else site.channels)
    cost = conv(first.channels, site.channels, 1, size) if 0 in live else Cost()
    if 1 in live and not site.first and (site.second_halves or second.channels != site.channels):
        cost += conv(second.channels, site.channels, 1, size)
    small = halved(size) if site.stride == 2 else size
    for state, block in enumerate(genotype.blocks, 2):
        for source, name in ((block.input1, block.op1), (block.input2, block.op2)):
            if state in live:
                side, stride = (size, site.stride) if source < 2 else (small, 1)
                cost += operation_cost(name, widths[source], site.channels, stride, side)
    for state in genotype.concat:
        if widths[state] != site.channels or (site.stride == 2 and state < 2):
            cost += conv(widths[state], site.channels, 1, small)
    return cost


def operation_cost(name: str, in_channels: int, channels: int, stride: int, size: int) -> Cost:
    """Return the cost of an operation that reads a map of `size` x `size` pixels."""
    kernel, out = kernel_of(name), halved(size) if stride == 2 else size
    if not has_weights(name, in_channels, channels, stride):
        return Cost()
    if name == "identity" or "pool" in name:
        return conv(in_channels, channels, 1, out)
    if name in ("conv_1x3_3x1", "conv_1x7_7x1"):
        horizontal = conv(in_channels, channels, (1, kernel), 1)  # leaves a map of size x out pixels
        return Cost(horizontal.params, horizontal.macs * size * out) + conv(channels, channels, (kernel, 1), out)
    if name.startswith("sep"):
        return _separable(in_channels, channels, kernel, out) + _separable(channels, channels, kernel, out)
    return conv(in_channels, channels, kernel, out)


def _separable(in_channels: int, channels: int, kernel: int, size: int) -> Cost:
    return conv(in_channels, in_channels, kernel, size, groups=in_channels, norm=False) + conv(
        in_channels, channels, 1, size
    )
