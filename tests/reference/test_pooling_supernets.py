"""How well mixtures of one to eight supernets rank the 36 pooling placements, from the published accuracies."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from search.supernets.rank_quality import quality

FIGURES = {
    # models: Spearman, Kendall, Pearson, the pick's segments and true accuracy, best true accuracy in the top five
    "M1": (0.233, 0.143, 0.306, [4, 2, 4], 90.34, 90.85),
    "M2": (0.473, 0.312, 0.553, [4, 3, 3], 90.52, 90.92),
    "M4": (0.757, 0.597, 0.835, [5, 2, 3], 90.96, 91.83),
    "M8": (0.709, 0.530, 0.814, [5, 2, 3], 90.96, 91.55),
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("models", FIGURES)
def test_supernets_rank_the_placements_as_published(models: str, shared_data: Path) -> None:
    table = rows(shared_data / "pooling" / "resnet20_cifar10_36_configurations.csv")
    truth = [float(row["baseline_avg"]) for row in table]
    scores = [float(row[f"{models}_avg"]) for row in table]
    found = quality(scores, truth)
    spearman, kendall, pearson, segments, picked, top5 = FIGURES[models]
    assert found.spearman == pytest.approx(spearman, abs=5e-4)
    assert found.kendall == pytest.approx(kendall, abs=5e-4)
    assert found.pearson == pytest.approx(pearson, abs=5e-4)
    pick = table[scores.index(max(scores))]
    assert [int(pick[f"block{segment}"]) for segment in (1, 2, 3)] == segments
    assert max(truth) - found.regret[1] == pytest.approx(picked, abs=5e-3)
    assert max(truth) - found.regret[5] == pytest.approx(top5, abs=5e-3)


def test_moving_averages_rank_as_the_whole_validation_set_does(shared_data: Path) -> None:
    log = {row["arch_index"]: row for row in rows(shared_data / "pooling" / "food101_resnet50_m8_supernet_eval.csv")}
    assert len(log) == 91
    moving, full = ([float(row[f"{kind}_val_accuracy"]) for row in log.values()] for kind in ("ema", "full"))
    assert spearmanr(moving, full).statistic == pytest.approx(0.90, abs=5e-3)
