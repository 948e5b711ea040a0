"""Allowed widths: multiples of the alignment, floors, and groups too narrow for it."""

from __future__ import annotations

import pytest
import torch

from compress.graph.graph import Group, Slice
from compress.graph.widths import WidthRules, allowed_widths, step, unit_width


def group(kind: str, size: int, channels: int = 1) -> Group:
    positions = torch.arange(size * channels).reshape(size, 1, channels)
    return Group(f"layer:{kind}", kind, size, (Slice("layer.weight", 0, positions, "out"),))


@pytest.mark.parametrize(
    ("kind", "size", "align", "expected"),
    [
        ("channels", 64, 16, [16, 32, 48, 64]),
        ("channels", 40, 16, [16, 32, 40]),  # the present width is always allowed
        ("channels", 24, 16, [4, 8, 12, 16, 20, 24]),  # narrower than two multiples: the largest power of two <= 24 / 4
        ("channels", 3, 16, [1, 2, 3]),
        ("mlp", 128, 32, [32, 64, 96, 128]),
        ("head_dims", 32, 16, [8, 16, 24, 32]),
        ("head_dims", 12, 16, [2, 4, 6, 8, 10, 12]),
        ("heads", 6, 16, [1, 2, 3, 4, 5, 6]),
        ("channels", 5, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_widths_are_multiples_of_the_alignment(kind, size, align, expected):
    assert allowed_widths(group(kind, size), WidthRules(align, min_fraction=0.01)) == expected


def test_units_of_several_channels_count_their_real_width():
    grouped = group("channels", 12, channels=8)
    assert unit_width(grouped) == 8
    assert allowed_widths(grouped, WidthRules(16, min_fraction=0.01)) == [2, 4, 6, 8, 10, 12]
    assert step(group("channels", 12, channels=24), WidthRules(16)) == 2  # 48 is the first multiple of both
    assert step(group("channels", 4, channels=64), WidthRules(16)) == 1


def test_alignment_may_differ_by_kind():
    rules = WidthRules({"channels": 16}, min_fraction=0.01)
    assert step(group("channels", 64), rules) == 16 and step(group("mlp", 64), rules) == 1


def test_floors_are_rounded_up_to_an_allowed_width():
    assert allowed_widths(group("channels", 64), WidthRules(16, min_fraction=0.3))[0] == 32
    assert allowed_widths(group("channels", 64), WidthRules(1, min_width=20))[0] == 20
    assert allowed_widths(group("channels", 12, 8), WidthRules(1, min_width=20))[0] == 3
    assert (
        allowed_widths(group("heads", 12), WidthRules(1, min_width=20))[0] == 2
    )  # a minimum of channels, not of heads
    assert allowed_widths(group("mlp", 64), WidthRules(1, min_fraction=1.0)) == [64]


def test_floors_of_a_model_pruned_before_refer_to_the_dense_one():
    rules = WidthRules(16, min_fraction=0.5, full={"layer:channels": 64})
    assert allowed_widths(group("channels", 48), rules) == [32, 48]
    assert step(group("channels", 16), rules) == 16  # though 16 alone would count as narrow
