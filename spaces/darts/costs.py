"""Parameters and MACs of a DARTS network by arithmetic, row by row."""

from __future__ import annotations

from evaluators.tasks import Task
from spaces.darts.genotype import Genotype
from spaces.darts.operations import kernel_of
from spaces.darts.options import DARTSConfig
from spaces.darts.skeleton import Site, auxiliary_site, auxiliary_size, sites, stem_channels
from spaces.layers import Cost, Layer, conv, halved, linear
from spaces.nasnet.parts import AUXILIARY_WIDTHS


def layers(config: DARTSConfig, genotype: Genotype, task: Task) -> list[Layer]:
    """Return the rows of the whole network: stem, cells, the auxiliary head if there is one, classifier."""
    rows, affine = _stem(config, task), config.norm == "affine"
    places = sites(config, task.img_size)
    for index, site in enumerate(places):
        cost = inputs_cost(site, affine)
        for (state, _), name in genotype.operations(site.kind).items():
            cost += edge_cost(name, state, site, affine)
        name = f"cell{index + 1}"
        rows.append(
            Layer(
                name,
                "normal cell" if site.kind == "normal" else "reduction cell",
                site.out_channels,
                site.out_size,
                site.stride,
                cost.params,
                cost.macs,
            )
        )
    if config.auxiliary:
        rows.append(_auxiliary_head(config, places[auxiliary_site(config)], task))
    head = linear(places[-1].out_channels, task.num_outputs)
    return [*rows, Layer("classifier", "pool, linear", task.num_outputs, 1, 1, head.params, head.macs)]


def inputs_cost(site: Site, affine: bool) -> Cost:
    """Return the cost of bringing both inputs of a cell to its width."""
    first, second = (conv(channels, site.channels, 1, site.size, norm=affine) for channels in site.inputs)
    return first + second


def edge_cost(name: str, state: int, site: Site, affine: bool) -> Cost:
    """Return the cost of an operation on a state of the cell at `site`."""
    channels, size = site.channels, site.out_size
    if "pool" in name or name == "none":
        return Cost()
    if name == "skip_connect":
        return conv(channels, channels, 1, size, norm=affine) if state < 2 and site.stride == 2 else Cost()
    depthwise = conv(channels, channels, kernel_of(name), size, groups=channels, norm=False)
    once = depthwise + conv(channels, channels, 1, size, norm=affine)
    return once + once if name.startswith("sep") else once


def _stem(config: DARTSConfig, task: Task) -> list[Layer]:
    channels, size = stem_channels(config), task.img_size
    if config.stem == "cifar":
        cost = conv(task.in_chans, channels, 3, size)
        return [Layer("stem", "conv 3x3", channels, size, 1, cost.params, cost.macs)]
    half, quarter, eighth = halved(size), halved(halved(size)), halved(halved(halved(size)))
    first = conv(task.in_chans, channels // 2, 3, half) + conv(channels // 2, channels, 3, quarter)
    second = conv(channels, channels, 3, eighth)
    return [
        Layer("stem0", "conv 3x3 twice", channels, quarter, 4, first.params, first.macs),
        Layer("stem1", "conv 3x3", channels, eighth, 2, second.params, second.macs),
    ]


def _auxiliary_head(config: DARTSConfig, site: Site, task: Task) -> Layer:
    """Return the row of the auxiliary head, which has parameters but computes nothing outside training."""
    narrow, wide = AUXILIARY_WIDTHS
    size = auxiliary_size(config, task.img_size)
    last = conv(narrow, wide, size, 1, norm=config.stem == "cifar")
    cost = conv(site.out_channels, narrow, 1, size) + last + linear(wide, task.num_outputs)
    return Layer("auxiliary_head", "in training only", task.num_outputs, 1, 1, cost.params, 0)
