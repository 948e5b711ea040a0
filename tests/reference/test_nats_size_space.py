"""Published figures of the NATS-Bench size space.

Parameters and FLOPs are those that the benchmark's query function prints (in millions): index 12 in the notebook
create-query-sss of the repository D-X-Y/NATS-Bench, the others as other projects quote them from the benchmark file.
Its FLOPs are MACs plus one for each class, which its counter adds for the bias of the classifier.
"""

from __future__ import annotations

import csv
import itertools
import statistics
from pathlib import Path

import pytest
import torch

from evaluators.cost import count_macs, count_params
from spaces.nats_size import NATSSizeSpace
from spaces.registry import create


@pytest.fixture(scope="module")
def space() -> NATSSizeSpace:
    found = create("nats_size")
    assert isinstance(found, NATSSizeSpace)
    return found


@pytest.mark.parametrize(
    ("code", "millions"),
    [
        ("8:8:8:8:8", 0.011714),
        ("8:8:8:16:40", 0.067378),
        ("8:8:16:40:40", 0.107826),
        ("64:64:64:64:64", 0.713674),
    ],
)
def test_parameters_are_the_published_ones(space: NATSSizeSpace, code: str, millions: float) -> None:
    arch = space.parse(code)
    assert space.cost(arch)["params"] == round(millions * 1e6) == count_params(space.build(arch))[0]


def test_flops_are_the_published_ones(space: NATSSizeSpace) -> None:
    arch = space.parse("8:8:8:16:40")
    assert space.cost(arch)["macs"] + 10 == 7_991_706
    assert count_macs(space.build(arch), torch.randn(1, 3, 32, 32)) + 10 == 7_991_706


def test_index_12_of_the_benchmark_is_rank_12(space: NATSSizeSpace) -> None:
    (twelfth,) = itertools.islice(space, 12, 13)
    assert space.to_code(twelfth) == "8:8:8:16:40"


def test_the_table_of_accuracies_lists_the_whole_space(space: NATSSizeSpace, shared_data: Path) -> None:
    with (shared_data / "bossnas" / "nats_ss_cifar10_accuracy.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    codes = [":".join(row[:5]) for row in rows]
    assert len(set(codes)) == space.count() == 32_768
    assert all(space.to_code(space.parse(code)) == code for code in codes[:: len(codes) // 500])
    assert codes == [":".join(map(str, channels)) for channels in itertools.product(range(8, 65, 8), repeat=5)]
    accuracy = {code: float(row[5]) for code, row in zip(codes, rows, strict=True)}
    assert max(accuracy, key=lambda code: accuracy[code]) == space.presets["best_cifar10"].code
    assert max(accuracy.values()) == 93.65
    assert round(statistics.mean(accuracy.values()), 4) == 91.0855
