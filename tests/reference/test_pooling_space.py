"""Figures published for, or computed from, the pooling placements of Javan et al. and their table of 36 networks."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from evaluators.cost import count_macs, count_params
from spaces.pooling import PoolingSpace
from spaces.registry import create

SPACES = {"resnet20": (10, 2, 36), "resnet18": (9, 3, 56), "resnet50": (16, 3, 455), "resnet50_224": (16, 3, 455)}


def pooling(backbone: str = "resnet20", **options: str) -> PoolingSpace:
    space = create("pooling", {"backbone": backbone, **options})
    assert isinstance(space, PoolingSpace)
    return space


@pytest.fixture(scope="module")
def table(shared_data: Path) -> list[dict[str, str]]:
    with (shared_data / "pooling" / "resnet20_cifar10_36_configurations.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("backbone", SPACES)
def test_placements_are_all_compositions_in_lexicographic_order(backbone: str) -> None:
    units, halvings, number = SPACES[backbone]
    space = pooling(backbone)
    segments = range(1, units)
    wanted = [list(code) for code in itertools.product(segments, repeat=halvings + 1) if sum(code) == units]
    assert [space.to_code(arch) for arch in space] == wanted
    assert space.count() == len(wanted) == number


@pytest.mark.parametrize(
    ("backbone", "default"),
    [("resnet20", [4, 3, 3]), ("resnet18", [3, 2, 2, 2]), ("resnet50", [3, 4, 6, 3]), ("resnet50_224", [3, 4, 6, 3])],
)
def test_backbones_halve_by_themselves_where_published(backbone: str, default: list[int]) -> None:
    space = pooling(backbone)
    assert space.to_code(space.at(space.chain.halved)) == default


@pytest.mark.parametrize("backbone", SPACES)
def test_no_placement_loses_a_halving(backbone: str) -> None:
    space = pooling(backbone)
    side = 56 if backbone == "resnet50_224" else 32
    for arch in space:
        rows = space.layers(arch)
        assert rows is not None
        assert rows[-2].size == side // 2**space.halvings
        assert sum(row.stride == 2 for row in rows) == space.halvings


def test_the_36_networks_cost_what_the_table_says(table: list[dict[str, str]]) -> None:
    affine, pure = pooling(), pooling(norm="batch_statistics")
    for arch, row in zip(affine, table, strict=True):
        assert affine.to_code(arch) == [int(row[f"block{segment}"]) for segment in (1, 2, 3)]
        assert affine.to_binary(arch) == row["pool_before_layer"]
        macs = int(row["macs_computed"])
        assert affine.cost(arch) == {"params": 272_474, "macs": macs}
        assert pure.cost(arch) == {"params": 270_906, "macs": macs}
        with torch.device("meta"):
            network = affine.build(arch)
            assert count_macs(network, torch.empty(1, 3, 32, 32)) == macs
            assert count_params(network)[0] == 272_474
    assert [affine.cost(affine.parse(code))["macs"] for code in ([1, 1, 8], [4, 3, 3], [7, 1, 2], [8, 1, 1])] == [
        18_596_480, 40_813_184, 91_144_832, 149_340_800,
    ]  # fmt: skip


def test_accuracy_follows_cost_only_in_part(table: list[dict[str, str]]) -> None:
    space = pooling()
    macs = [space.cost(arch)["macs"] for arch in space]
    accuracy = [float(row["baseline_avg"]) for row in table]
    assert spearmanr(macs, accuracy).statistic == pytest.approx(0.627, abs=5e-4)
    best = max(zip(accuracy, space, strict=True), key=lambda pair: pair[0])[1]
    assert space.to_code(best) == [7, 1, 2]


def test_resnet50_as_designed_is_torchvisions() -> None:
    import torchvision

    space = pooling("resnet50_224")
    arch = space.parse([3, 4, 6, 3])
    assert space.cost(arch, space.task(num_outputs=1000)) == {"params": 25_557_032, "macs": 4_089_184_256}
    ours = space.build(arch, space.task(num_outputs=1000)).eval()
    theirs = torchvision.models.resnet50(weights=None).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
