"""NAS-Bench-Macro: the benchmark's strings, its isomorphic codes, what identities do."""

from __future__ import annotations

import random

import pytest

from compress.core.errors import InputError
from spaces.nas_bench_macro import NasBenchMacro
from spaces.registry import create, open_preset


def open_space(**options: object) -> NasBenchMacro:
    space = create("nas_bench_macro", options)
    assert isinstance(space, NasBenchMacro)
    return space


def test_codes_go_both_ways() -> None:
    space = open_space()
    arch = space.parse("02112001")
    assert [arch[f"layer{layer}"] for layer in (1, 2, 3)] == ["identity", "mb6_k5", "mb3_k3"]
    assert all(space.to_code(space.from_code(space.to_code(arch))) == space.to_code(arch) for arch in list(space)[::97])


@pytest.mark.parametrize("code", ["2221222", "222122200", 22212220, ["2"] * 8])
def test_code_of_another_length_or_type_is_refused(code: object) -> None:
    with pytest.raises(InputError, match="string of 8 digits 0, 1 or 2; got"):
        open_space().parse(code)


def test_wrong_digits_are_named() -> None:
    with pytest.raises(InputError, match="layer3: got '3'; allowed 0") as error:
        open_space().parse("223122x0")
    assert error.value.problems[1].startswith("layer7: got 'x'")


def test_identities_move_to_the_end_of_their_stage() -> None:
    space = open_space()
    assert space.to_code(space.canonical(space.parse("00102021"))) == "00120021"
    assert space.to_code(space.canonical(space.parse("02001001"))) == "02010010"


def test_canonical_forms_cost_the_same() -> None:
    space, generator = open_space(), random.Random(0)
    for _ in range(100):
        arch = space.sample(generator)
        assert space.cost(space.canonical(arch)) == space.cost(arch)


def test_identity_costs_nothing_but_where_the_map_shrinks() -> None:
    rows = open_space().layers(open_space().parse("00000000"))
    assert rows is not None
    assert [(row.name, row.operation, row.size) for row in rows] == [
        ("stem", "conv k3", 32),
        ("stage1.layer1", "conv k1", 16),
        ("stage2.layer1", "conv k1", 8),
        ("stage3.layer1", "conv k1", 4),
        ("last", "conv k1", 4),
        ("classifier", "linear", 1),
    ]


def test_size_of_the_space_is_an_option() -> None:
    space = open_space(stem=8, depths=(1, 2))
    assert space.count() == 27
    assert [len(stage) for stage in space.rows(space.parse("120")).blocks] == [1, 1]


@pytest.mark.parametrize("options", [{"depths": ()}, {"depths": (2, 0)}, {"stem": 0}])
def test_sizes_below_one_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="space nas_bench_macro, option"):
        create("nas_bench_macro", options)


def test_best_network_is_a_preset() -> None:
    space, arch = open_preset("nas_bench_macro", "best")
    assert arch is not None
    assert space.to_code(arch) == "22212220"
