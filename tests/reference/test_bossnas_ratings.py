"""Published BossNAS ratings: correlations of summed block losses with accuracies (repository changlin31/BossNAS)."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from search.supernets.block_ratings import METRIC, BlockRater
from search.supernets.rank_quality import quality
from spaces.architecture import Choice
from spaces.registry import create


def table(shared_data: Path, name: str) -> list[dict[str, str]]:
    with (shared_data / "bossnas" / name).open() as file:
        return list(csv.DictReader(file))


def losses(shared_data: Path, name: str) -> list[dict[str, float]]:
    found: dict[str, Any] = json.loads((shared_data / "bossnas" / name).read_text())
    return list(found["blocks"])


def correlations(scores: Sequence[float], accuracies: Sequence[float]) -> list[float]:
    """Kendall, Spearman and Pearson to four digits, positive where a lower loss is a better network."""
    found = quality(scores, accuracies, "minimize", resamples=0)
    return [round(value or 0, 4) for value in (found.kendall, found.spearman, found.pearson)]


def test_nats_sizes(shared_data: Path) -> None:
    space = create("nats_size")
    with torch.device("meta"):
        blocks = space.supernet(space.default_task).blocks()
    rows = table(shared_data, "nats_ss_cifar10_accuracy.csv")
    rater = BlockRater(blocks, losses(shared_data, "nats_ss_cifar10_path_losses.json"))
    architectures = [space.parse([int(row[f"c{place}"]) for place in range(1, 6)]) for row in rows]
    scores = [round(rater.free(arch)[METRIC] + 4 * 3, 4) for arch in architectures]
    accuracies = [float(row["accuracy"]) for row in rows]
    assert correlations(scores, accuracies) == [0.5342, 0.7341, 0.7181]
    best = min(range(len(rows)), key=lambda row: rater.free(architectures[row])[METRIC])
    assert space.to_code(architectures[best]) == "64:40:48:64:56"
    assert accuracies[best] == 93.29


class Coded:
    """What a rater asks of a block: the code, given by the architecture as it is published."""

    def __init__(self, name: str) -> None:
        self.name = name

    def code(self, path: Mapping[str, Choice]) -> str:
        return str(path[self.name])


def test_mbconv(shared_data: Path) -> None:
    rows = table(shared_data, "mbconv_23_architectures.csv")
    blocks: Any = [Coded(f"block{number}") for number in range(1, 6)]
    rater = BlockRater(blocks, losses(shared_data, "mbconv_path_losses.json"))
    scores = [round(rater.free(row)[METRIC] + 4 * 5, 4) for row in rows]  # type: ignore[arg-type]
    assert scores == [float(row["score_sum_plus4_per_block"]) for row in rows]
    assert correlations(scores, [float(row["top1_imagenet"]) for row in rows]) == [0.6468, 0.7771, 0.8470]
