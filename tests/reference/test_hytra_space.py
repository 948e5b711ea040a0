"""HyTra against the figures of BossNAS: paths, operations, found networks. Nothing here needs storage or training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from evaluators.cost import count_macs, count_params
from spaces.hytra import HyTra
from spaces.hytra.block import Block, Candidate
from spaces.registry import create, open_preset

# params, MAdds in millions with attention products
PUBLISHED = {
    ("bossnet-t0-nose", 224): (37_319_080, 3441.9),
    ("bossnet-t0", 224): (38_415_960, 3443.0),
    ("bossnet-t0", 288): (38_415_960, 5731.9),
    ("bossnet-t1", 224): (38_415_960, 7944.4),
    ("bossnet-t1", 256): (38_415_960, 10509.1),
    ("r50-t", 224): (25_594_792, 4100),
    ("bot50-t", 224): (20_876_200, 3880),
    ("dna-t", 224): (29_519_272, 3910),
}
EMPTY_STAGES = {"ViT-T/16": 3.2, "Random-T": 3.7, "UnNAS-T": 3.7}


@pytest.fixture(scope="module")
def space() -> HyTra:
    found = create("hytra")
    assert isinstance(found, HyTra)
    return found


def test_there_are_2818103_paths(space: HyTra) -> None:
    assert space.count() == 2_818_103
    # in order of their first layer's scale, largest map first
    firsts = [space.tree.unrank(rank)["layer0.scale"] for rank in (0, 786_483, 786_484, 1_703_990, 1_703_991)]
    assert firsts == [3, 3, 2, 2, 1]


@pytest.mark.parametrize(("largest", "legal", "searched"), [(3, 131, 51), (2, 115, 99), (1, 80, 80), (0, 16, 16)])
def test_paths_of_a_block(space: HyTra, largest: int, legal: int, searched: int) -> None:
    assert len(set(space.block_paths(largest))) == legal
    assert len(set(space.block_paths(largest, searched=True))) == searched
    assert set(space.block_paths(largest, searched=True)) <= set(space.block_paths(largest))


def test_t0_is_a_chain_of_searched_block_paths(space: HyTra) -> None:
    codes = space.codes(space.parse("5433 3230 0010 0000"))
    largest = 3
    for start in range(0, 16, 4):
        block = tuple(codes[start : start + 4])
        assert block in space.block_paths(largest, searched=True)
        largest = space.fabric.place(block[-1])[0]


def test_parameters_of_the_operations_and_of_the_four_blocks() -> None:
    space, _ = open_preset("hytra", "bossnas")
    assert isinstance(space, HyTra)
    with torch.device("meta"):
        blocks = [Block(space.config, space.fabric, index) for index in range(4)]
    assert [count_params(block)[0] for block in blocks] == [237_972_672, 232_070_144, 192_106_496, 192_106_496]
    layer = blocks[0].layers[1]
    assert isinstance(layer, nn.ModuleDict)
    counted = {}
    for code, candidate in layer.items():
        assert isinstance(candidate, Candidate)
        both = count_params(candidate)[0]
        counted[int(code)] = (both - (count_params(candidate.down)[0] if candidate.down else 0), both)
    assert counted == {
        0: (2_894_848, 22_303_744),
        1: (4_467_712, 23_876_608),
        2: (726_528, 5_581_312),
        3: (1_119_744, 5_974_528),
        4: (281_344, 1_496_320),
        5: (71_040, 71_040),
    }


@pytest.mark.parametrize(("name", "img_size"), PUBLISHED)
def test_found_networks_cost_what_was_published(name: str, img_size: int) -> None:
    space, arch = open_preset("hytra", name)
    assert arch is not None
    params, madds = PUBLISHED[name, img_size]
    cost = space.cost(arch, space.task(img_size=img_size))
    assert cost["params"] == params
    assert cost["macs"] / 1e6 == pytest.approx(madds, abs=0.05 if madds % 10 else 5)
    with torch.device("meta"):
        network = space.build(arch, space.task(img_size=img_size))
        images = torch.empty(1, 3, img_size, img_size)
        assert cost == {"params": count_params(network)[0], "macs": count_macs(network, images)}


def test_r50_t_is_resnet50_with_a_position_encoding_in_every_layer() -> None:
    from torchvision.models import resnet50

    space, arch = open_preset("hytra", "r50-t")
    assert arch is not None
    with torch.device("meta"):
        plain = count_params(resnet50())[0]
    filters = sum(depth * width * (9 + 1) for depth, width in ((3, 64), (4, 128), (6, 256), (3, 512)))
    assert space.cost(arch)["params"] == plain + filters == 25_557_032 + 37_760


def test_t0_found_and_t0_retrained_are_the_same_path() -> None:
    found, path = open_preset("hytra", "bossnet-t0-path")
    retrained, arch = open_preset("hytra", "bossnet-t0")
    assert path == arch is not None
    assert found.to_code(arch) == retrained.to_code(arch) == "5433 3230 0010 0000"


def test_published_encodings_come_back_as_they_were(space: HyTra, shared_data: Path) -> None:
    content = json.loads((shared_data / "bossnas" / "hytra_encodings.json").read_text())
    for name, network in content["architectures"].items():
        assert space.to_stages(space.parse(network["stages"])) == network["stages"], name
    found = space.parse(content["BossNet-T0_as_search_path"])
    assert found == space.parse(content["architectures"]["BossNet-T0"]["stages"])
    assert space.to_code(found).split() == content["BossNet-T0_as_search_path"]


@pytest.mark.parametrize("name", EMPTY_STAGES)
def test_empty_stages_keep_the_published_map_sizes(name: str, shared_data: Path) -> None:
    """The reported MAdds count their convolutions with a quarter of the channels on both sides; maps agree."""
    content = json.loads((shared_data / "bossnas" / "hytra_encodings.json").read_text())
    space = create("hytra", {"version": "retrain"})
    arch = space.parse(content["architectures"][name]["stages"])
    rows = space.layers(arch)
    assert rows is not None
    sizes = {row.name: row.size for row in rows}
    expected = {f"stage{stage}": size for stage, size in enumerate((56, 28, 14, 7)) if f"stage{stage}" in sizes}
    assert expected.items() <= sizes.items()
    macs = 0
    for row in rows:
        empty = row.name.startswith("stage")
        macs += 9 * (row.out_channels // 4) ** 2 * row.size**2 if empty else row.macs
    assert macs / 1e9 == pytest.approx(EMPTY_STAGES[name], abs=0.05)
