"""NASNet's codes, genotypes, options and canonical form."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.core.errors import InputError
from spaces.nasnet import BlockGenotype, CellGenotype, Genotype, NASNetSpace
from spaces.nasnet.presets import NASNET_A
from spaces.registry import create, open_preset, presets, read_architecture


def nasnet(**options: Any) -> NASNetSpace:
    space = create("nasnet", options)
    assert isinstance(space, NASNetSpace)
    return space


@pytest.fixture(scope="module")
def space() -> NASNetSpace:
    return nasnet(cells_per_stage=1, filters=4)


def test_there_are_fifty_decisions_always_taken(space: NASNetSpace) -> None:
    assert len(space.decisions) == 50
    assert all(decision.when is None for decision in space.decisions)
    choices = {decision.name: decision.choices for decision in space.decisions}
    assert choices["normal.block0.input1"] == (0, 1)
    assert choices["reduction.block4.input2"] == (0, 1, 2, 3, 4, 5)
    assert len(choices["normal.block2.op1"]) == 13


def test_code_is_the_paper_s_order() -> None:
    space, arch = open_preset("nasnet", "nasnet-a-cifar")
    code = space.to_code(arch)
    assert code[:10] == [0, 1, 11, 10, 0, 1, 1, 11, 10, 0]  # sep5(0) + sep3(1), then sep5(1) + sep3(1)
    assert code[25:30] == [0, 1, 11, 12, 0]  # the reduction cell begins with sep5(0) + sep7(1)


def test_codes_and_genotypes_round_trip(space: NASNetSpace) -> None:
    generator = random.Random(0)
    for _ in range(50):
        arch = space.sample(generator)
        code = space.to_code(arch)
        assert len(code) == 50
        assert space.parse(code) == arch
        genotype = space.genotype(arch)
        written = json.loads(json.dumps(genotype.to_dict()))
        assert Genotype.from_dict(written) == genotype
        assert space.parse(written) == arch
        assert space.check(space.from_code(genotype)) == arch


def test_decoded_code_builds_the_same_network(space: NASNetSpace) -> None:
    arch = space.sample(random.Random(5))
    again = space.parse(space.to_code(arch))
    one, other = space.build(arch), space.build(again)
    assert str(one) == str(other)


def test_released_genotype_concatenates_states_that_are_read() -> None:
    read = {state for block in NASNET_A.normal.blocks for state in (block.input1, block.input2)}
    assert 1 in read
    assert 1 in NASNET_A.normal.concat
    space, arch = open_preset("nasnet", "nasnet-a-cifar")
    assert isinstance(space, NASNetSpace)
    assert space.genotype(arch) == NASNET_A
    loose, arch = open_preset("nasnet", "nasnet-a-cifar", {"concat": None})
    assert isinstance(loose, NASNetSpace)
    assert loose.genotype(arch).normal.concat == (2, 3, 4, 5, 6)
    assert loose.genotype(arch).reduction.concat == (4, 5, 6)


def test_genotype_of_another_concat_rule_is_refused(space: NASNetSpace) -> None:
    with pytest.raises(InputError, match=r"normal\.concat: got \[1, 2, 3, 4, 5, 6\]; .* \[2, 3, 4, 5, 6\]"):
        space.from_code(NASNET_A)


@pytest.mark.parametrize(
    ("position", "value", "sentence"),
    [
        (1, 2, r"normal\.block0\.input2 \(position 1\): got 2; allowed 0 to 1"),
        (27, 13, r"reduction\.block0\.op1 \(position 27\): got 13; allowed 0 to 12"),
        (4, -1, r"normal\.block0\.combine \(position 4\): got -1; allowed 0 to 1"),
        (0, True, "got True"),
        (0, "h0", "got 'h0'"),
    ],
)
def test_wrong_integers_are_named(space: NASNetSpace, position: int, value: object, sentence: str) -> None:
    code: list[object] = list(space.to_code(space.sample(random.Random(0))))
    code[position] = value
    with pytest.raises(InputError, match=sentence):
        space.parse(code)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ([0] * 49, "has 50 integers .* got 49"),
        ("0101", "list of 50 integers or a genotype; got '0101'"),
        ({"normal": {}, "reduction": {}}, "a NASNet genotype is written"),
        ({kind: {"blocks": [], "concat": [0]} for kind in ("normal", "reduction")}, "has 5 blocks; got 0"),
    ],
)
def test_other_forms_are_refused(space: NASNetSpace, code: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        space.parse(code)


def test_genotype_file_is_read(space: NASNetSpace, tmp_path: Path) -> None:
    arch = space.sample(random.Random(1))
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(space.genotype(arch).to_dict()))
    assert read_architecture(path, "nasnet")[1] == arch
    path.write_text(json.dumps(space.to_dict(arch)))
    found, again = read_architecture(path)
    assert (found.config, again) == (space.config, arch)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stem": "imagenet", "filters": 10}, "multiple of 4"),
        ({"concat": {"normal": [2, 1], "reduction": [3]}}, "ascending"),
        (
            {"concat": {"normal": [7], "reduction": [3]}},
            "option concat.normal.0: out of range; got 7; allowed at least 0 and at most 6",
        ),
        ({"operations": ["identity", "identity"]}, "listed twice"),
        ({"operations": ["sep_conv_9x9"]}, "sep_conv_9x9"),
        ({"drop_path_keep": 0}, "got 0; allowed above 0 and at most 1"),
        ({"cells": 3}, "option cells: unknown key; allowed auxiliary"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        create("nasnet", options)


def test_operations_can_be_fewer() -> None:
    small = nasnet(operations=["sep_conv_3x3", "identity"], combines=["add"])
    assert small.count() == (720**2 * 2**10) ** 2
    arch = small.sample(random.Random(0))
    assert small.parse(small.to_code(arch)) == arch
    wrong = {**arch, "normal.block0.op1": "conv_1x1"}
    with pytest.raises(InputError, match=r"normal\.block0\.op1: got 'conv_1x1'; allowed sep_conv_3x3 or identity"):
        small.check(wrong)


def test_presets_open() -> None:
    for name in presets("nasnet"):
        space, arch = open_preset("nasnet", name)
        assert (arch is None) == (name == "digits")
        assert space.default_task.img_size == {"nasnet-a-mobile": 224, "nasnet-a-large": 331}.get(name, 32)


def shuffled(cell: CellGenotype, generator: random.Random) -> CellGenotype:
    """Return the cell with its blocks in another order that their inputs allow, and slots swapped."""
    order: list[int] = []
    while len(order) < 5:
        ready = [
            index
            for index, block in enumerate(cell.blocks)
            if index not in order and all(i < 2 or i - 2 in order for i in (block.input1, block.input2))
        ]
        order.append(generator.choice(ready))
    names = {0: 0, 1: 1} | {index + 2: place + 2 for place, index in enumerate(order)}
    blocks = []
    for index in order:
        block = cell.blocks[index]
        slots = [(names[block.input1], block.op1), (names[block.input2], block.op2)]
        generator.shuffle(slots)
        blocks.append(BlockGenotype(slots[0][0], slots[1][0], slots[0][1], slots[1][1], block.combine))
    return CellGenotype(tuple(blocks), tuple(sorted(names[state] for state in cell.concat)))


def even_weights(network: nn.Module) -> nn.Module:
    """Make all channels of a state the same, so that their order cannot matter."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.5 / module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, -0.05)
        elif isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.1)
    return network.eval()


def test_renamed_genotypes_have_one_canonical_form_and_compute_the_same(space: NASNetSpace) -> None:
    generator = random.Random(7)
    images = torch.randn(2, 3, 16, 16)
    changed = 0
    for trial in range(30):
        arch = space.sample(generator)
        genotype = space.genotype(arch)
        cells = {"normal": shuffled(genotype.normal, generator), "reduction": shuffled(genotype.reduction, generator)}
        other = space.check(space.from_code(Genotype(**cells)))
        canonical = space.canonical(arch)
        assert space.canonical(other) == canonical == space.canonical(canonical)
        assert space.cost(canonical) == space.cost(other) == space.cost(arch)
        changed += other != arch
        if trial < 5:
            with torch.no_grad():
                one, two = (even_weights(space.build(each))(images) for each in (arch, canonical))
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert changed > 25


def test_different_networks_keep_different_canonical_forms(space: NASNetSpace) -> None:
    generator = random.Random(8)
    arch = space.sample(generator)
    for _ in range(30):
        mutant = space.mutate(arch, generator)
        if space.cost(mutant) != space.cost(arch):
            assert space.canonical(mutant) != space.canonical(arch)


def test_choices_of_blocks_that_do_not_count_do_not_matter() -> None:
    listed = nasnet(concat={"normal": [6], "reduction": [2]}, cells_per_stage=1, filters=4)
    arch = listed.sample(random.Random(0))
    dead = {**arch, "reduction.block3.op1": "conv_3x3", "reduction.block4.combine": "concat"}
    assert listed.canonical(listed.check(dead)) == listed.canonical(arch)
    assert listed.cost(dead) == listed.cost(arch)
    live = {**arch, "reduction.block0.op1": "conv_3x3" if arch["reduction.block0.op1"] != "conv_3x3" else "conv_1x1"}
    assert listed.canonical(listed.check(live)) != listed.canonical(arch)


def test_pictures_show_the_cells_and_the_space(space: NASNetSpace) -> None:
    arch = space.sample(random.Random(2))
    drawn = space.draw(arch)
    assert drawn.startswith("<svg")
    assert "normal cell" in drawn
    assert "reduction cell" in drawn
    assert "13 operations" in space.draw()
