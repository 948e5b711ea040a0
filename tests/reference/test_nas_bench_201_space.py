"""Published figures of NAS-Bench-201.

FLOPs and parameters are those of the benchmark file, in millions, as its users quote them: the smallest and the largest
of all 15,625 cells (its ranges for CIFAR-10, CIFAR-100 and ImageNet16-120), index 0 as in the API's own tests, index
9930 as the API prints it. Its FLOPs are MACs plus one for each class, which its counter adds for the bias of the
classifier.
"""

from __future__ import annotations

import pytest
import torch

from evaluators.cost import count_macs, count_params
from spaces.registry import create
from spaces.space import Space

ALL = "|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|"
FIRST = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
INDEX_9930 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


@pytest.fixture(scope="module")
def space() -> Space:
    return create("nas_bench_201")


@pytest.mark.parametrize(
    ("code", "classes", "size", "params", "flops"),
    [
        (ALL.format("none"), 10, 32, 0.073306, 7.78305),
        (ALL.format("nor_conv_3x3"), 10, 32, 1.531546, 220.11969),
        (ALL.format("none"), 100, 32, 0.079156, 7.7889),
        (ALL.format("nor_conv_3x3"), 100, 32, 1.537396, 220.12554),
        (ALL.format("none"), 120, 16, None, 1.95340),
        (ALL.format("nor_conv_3x3"), 120, 16, None, 55.03756),
        (FIRST, 10, 32, 0.129306, 15.64737),
    ],
)
def test_costs_are_the_published_ones(
    space: Space, code: str, classes: int, size: int, params: float | None, flops: float
) -> None:
    arch, task = space.parse(code), space.task(classes, img_size=size)
    cost, network = space.cost(arch, task), space.build(arch, task)
    assert cost["macs"] + classes == round(flops * 1e6)
    assert count_macs(network, torch.randn(1, 3, size, size)) == cost["macs"]
    assert params is None or cost["params"] == round(params * 1e6) == count_params(network)[0]


@pytest.mark.parametrize(
    ("classes", "size", "params", "flops"), [(10, 32, 1.289, 184.73), (100, 32, 1.294, 184.74), (120, 16, 1.296, 46.19)]
)
def test_costs_of_index_9930(space: Space, classes: int, size: int, params: float, flops: float) -> None:
    cost = space.cost(space.parse(INDEX_9930), space.task(classes, img_size=size))
    assert (round(cost["params"] / 1e6, 3), round((cost["macs"] + classes) / 1e6, 2)) == (params, flops)


def test_the_cell_of_the_size_space_is_one_of_these() -> None:
    sizes, cells = create("nats_size"), create("nas_bench_201", {"channels": 16, "cells": 1})
    assert sizes.cost(sizes.parse("16:32:32:64:64")) == cells.cost(cells.parse(INDEX_9930))
