"""Zero-cost scores of NAS-Bench-Macro's networks go along with their published accuracy on CIFAR-10."""

from __future__ import annotations

import csv
import gzip
import random
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.candidates.proxies import ProxyConfig
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from spaces.registry import create

NETWORKS = 25


@pytest.mark.slow
def test_scores_rank_networks_as_training_does(shared_data: Path, tmp_path: Path) -> None:
    table = shared_data / "nas" / "nas_bench_macro" / "nas_bench_macro_cifar10.csv.gz"
    with gzip.open(table, "rt") as file:
        rows = random.Random(0).sample(list(csv.DictReader(file)), NETWORKS)
    space = create("nas_bench_macro")
    data = DigitsConfig(name="digits", batch_size=32).load(DEFAULT, seed=0)
    evaluator = ProxyConfig(batch=16).make(EvaluatorContext(space, data, "cpu", 0, tmp_path))
    names = ("macs", "synflow", "naswot")
    scores = [evaluator.evaluate(space.parse(row["arch"]), names, 0) for row in rows]
    accuracy = [float(row["mean_acc"]) for row in rows]
    found = {name: spearmanr([each[name] for each in scores], accuracy).statistic for name in names}
    assert found["naswot"] > 0.75
    assert found["synflow"] > 0.55
