"""LeYOLO's space: the width rule, published sizes, costs, which tasks and backbones go with it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from compress.core.errors import InputError
from evaluators.cost import count_macs, count_params
from spaces.leyolo import LeYOLOSpace
from spaces.leyolo.rows import PARTS
from spaces.registry import create, open_preset
from spaces.space import task_of

PUBLISHED = {
    ("nano", 320): 0.66,
    ("nano", 480): 1.47,
    ("small", 480): 2.53,
    ("small", 640): 4.51,
    ("medium", 640): 5.80,
    ("large", 768): 8.40,
}
"""GFLOP, as the authors' README has them; their counter adds up to 4 for every number that a batch norm handles."""


def opened(**options: Any) -> LeYOLOSpace:
    space = create("leyolo", options)
    assert isinstance(space, LeYOLOSpace)
    return space


def gflop(preset: str, size: int) -> float:
    space, arch = open_preset("leyolo", preset)
    assert arch is not None
    return 2e-9 * space.cost(arch, space.task(img_size=size))["macs"]


def test_widths_are_rounded_up_and_capped_before_they_are_multiplied() -> None:
    wide = opened(backbone={"width": 1.33}).backbone
    assert [wide.channels(each) for each in (16, 32, 64, 96, 192, 576)] == [24, 48, 88, 128, 256, 768]
    assert wide.channels(864) == 768
    space, arch = open_preset("leyolo", "small")
    assert isinstance(space, LeYOLOSpace) and arch is not None
    rows = space.rows(arch)
    assert [stage[-1].out for stage in rows.backbone.blocks] == [24, 48, 88, 128]
    assert [row.hidden for row in rows.backbone.blocks[3]] == [768, 768, 768, 768]
    assert rows.strides == (8, 16, 32)
    assert rows.parts[1][0].hidden == rows.ins[1]  # nothing is expanded where the finest maps come together


@pytest.mark.parametrize(("preset", "size"), PUBLISHED)
def test_published_sizes_cost_what_is_published_but_for_the_norms(preset: str, size: int) -> None:
    assert 0.90 < gflop(preset, size) / PUBLISHED[preset, size] < 0.94


def test_cost_grows_with_the_area_of_the_image() -> None:
    assert gflop("nano", 480) / gflop("nano", 320) == pytest.approx(2.25, rel=0.02)
    assert gflop("small", 640) / gflop("small", 480) == pytest.approx(16 / 9, rel=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": {"skeleton": "large"}},
        {"backbone": {"skeleton": "tiny", "strides": [2, 1, 2, 2, 2], "widths": [0.5, 1.0], "se": "searched"}},
        {"backbone": {"resolutions": [64, 96]}, "neck_depths": [2, 4], "head_width": 64, "bins": 8},
    ],
)
def test_any_skeleton_of_mobilenetv3_is_a_backbone(options: dict[str, Any]) -> None:
    space, generator = opened(**options), random.Random(0)
    task = space.task(5, 3, 64)
    for _ in range(3):
        arch = space.sample(generator)
        assert {name.split(".")[0] for name in arch} <= {"resolution", *(f"stage{n}" for n in range(2, 7)), *PARTS}
        network, size = space.build(arch, task).eval(), space.input_size(arch, 64)
        counted = {"params": count_params(network)[0], "macs": count_macs(network, [torch.randn(3, size, size)])}
        assert space.cost(arch, task) == counted
        assert space.cost(space.canonical(arch), task) == counted


def test_the_pyramid_takes_maps_before_the_expansion_that_halves_them() -> None:
    space = opened(backbone={"skeleton": "large"})
    rows = space.rows(space.sample(random.Random(0)))
    assert (rows.tapped, rows.strides) == ((40, 112, 160), (8, 16, 32))  # not 960, the last convolution's


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(InputError, match=r"option backbone.strides: the pyramid takes maps of three strides; these"):
        opened(backbone={"strides": [2, 1, 1, 2, 1]})
    with pytest.raises(InputError, match="option head_width: needs neck_depths of 2 and more"):
        opened(head_width=64)
    space, arch = open_preset("leyolo", "digits-small")
    with pytest.raises(InputError, match=r"task.name: networks of the space leyolo are for detection; got class"):
        space.build(arch or {}, task_of())
