"""MnasNet's space: counts, strings of the reference implementation, equal networks, options."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from compress.core.errors import InputError
from spaces.mnasnet import MnasNet
from spaces.registry import create, open_preset

CODE = ["r1_k3_s11_e1_i32_o16_noskip", "r3_k5_s22_e3_i16_o24_se0.25", "r4_k3_s22_e1_i24_o40_conv_pool"]
THREE = {"widths": (16, 24, 32), "depths": (1, 2, 3), "strides": (1, 2, 2)}


def open_space(**options: Any) -> MnasNet:
    space = create("mnasnet", options)
    assert isinstance(space, MnasNet)
    return space


def test_a_stage_has_432_choices() -> None:
    # section 4.2 of the paper: S = 432 for a stage that may have one layer less; one of a single layer may not
    assert open_space().count() == 432**5 * 288**2


def test_strings_go_both_ways() -> None:
    space = open_space(**THREE)
    arch = space.parse(CODE)
    assert space.to_code(arch) == CODE
    assert (arch["stage3.operation"], arch["stage3.skip"], arch["stage3.filters"]) == ("conv", "pool", 1.25)
    generator = random.Random(0)
    for _ in range(100):
        arch = space.canonical(space.sample(generator))
        assert space.canonical(space.parse(space.to_code(arch))) == arch


@pytest.mark.parametrize(
    ("stage", "text", "problem"),
    [
        (1, "r1_k3_s11_i32_o16", r"stage1: got 'r1_k3_s11_i32_o16'; allowed strings like"),
        (2, "r3_k5_s11_e3_i16_o24", "stage2: got s11; allowed s22"),
        (2, "r3_k5_s22_e4_i16_o24", "stage2: got e4; allowed e1, e3 or e6"),
        (2, "r3_k5_s22_e3_i24_o24", "stage2: got i24; allowed i16"),
        (3, "r3_k5_s22_e3_i24_o28", "stage3: got o28; allowed o24, o32 or o40"),
        (3, "r3_k5_s22_e3_i24_o32_conv", "stage3: got e3; allowed e1"),
        (3, "r5_k5_s22_e3_i24_o32", r"stage3\.layers: got 5; allowed 2, 3 or 4"),
        (3, "r3_k7_s22_e3_i24_o32", r"stage3\.kernel: got 7; allowed 3 or 5"),
        (3, "r3_k5_s22_e3_i24_o32_se0.5", r"stage3\.se: got 0\.5; allowed 0\.0 or 0\.25"),
    ],
)
def test_wrong_strings_are_named(stage: int, text: str, problem: str) -> None:
    code = list(CODE)
    code[stage - 1] = text
    with pytest.raises(InputError, match=problem):
        open_space(**THREE).parse(code)


@pytest.mark.parametrize("code", ["r1", CODE[:2], 3])
def test_code_of_another_length_is_refused(code: object) -> None:
    with pytest.raises(InputError, match="a list of 3 strings; got"):
        open_space(**THREE).parse(code)


def test_canonical_form_joins_equal_networks_only() -> None:
    space, generator = open_space(), random.Random(1)
    for _ in range(200):
        arch = space.sample(generator)
        canonical = space.canonical(arch)
        assert without_idle_skips(space, canonical) == without_idle_skips(space, arch)
        assert space.canonical(canonical) == canonical


def without_idle_skips(space: MnasNet, arch: Any) -> object:
    channels, found = space.config.stem, []
    for stage in space.rows(space.check(arch)).blocks:
        for row in stage:
            idle = row.skip == "identity" and (row.stride == 2 or row.out != channels)
            found.append(replace(row, skip="none") if idle else row)
            channels = row.out
    return found


def test_skip_of_a_single_layer_that_changes_the_width_is_none() -> None:
    space = open_space(**THREE)
    arch = space.check({**space.parse(CODE), "stage1.skip": "identity"})
    assert space.canonical(arch)["stage1.skip"] == "none"
    assert (
        space.canonical(space.check({**arch, "stage2.layers": 2, "stage2.skip": "identity"}))["stage2.skip"] != "none"
    )


def test_squeeze_is_a_quarter_of_the_block_input() -> None:
    space, arch = open_preset("mnasnet", "a1")
    assert isinstance(space, MnasNet) and arch is not None
    assert [row.se for row in space.rows(arch).blocks[2]] == [6, 10, 10]


@pytest.mark.parametrize("preset", ["a1", "b1"])
def test_published_networks_keep_their_strings(preset: str) -> None:
    space, arch = open_preset("mnasnet", preset)
    assert arch is not None
    assert space.to_code(arch) == list(space.presets[preset].code)


def test_cifar_preset_has_output_stride_8() -> None:
    space, _ = open_preset("mnasnet", "cifar")
    rows = space.layers(space.sample(random.Random(0)), space.task(10, 3, 32))
    assert rows is not None
    assert rows[-2].size == 4


@pytest.mark.parametrize(
    "options",
    [{"widths": (16, 24)}, {"strides": (1, 2, 2, 2, 1, 2, 3)}, {"filters": (1.0, 1.0)}, {"filters": (0.0,)}],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="space mnasnet"):
        create("mnasnet", options)
