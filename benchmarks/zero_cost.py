"""Zero-cost scores beside the published accuracy of NAS-Bench-Macro: how well they rank networks before any training.

    python benchmarks/zero_cost.py cifar10.npz [--architectures 150] [--batch 64] [--seed 0]

Draws architectures of the benchmark, builds each with initial weights, scores it by evaluator `proxy` on CIFAR-10
training images, and compares with the mean accuracy of the three published trainings. The table is read from the
folder that COMPRESS_DATA names. Prints one table: rank correlation (Spearman's rho, with its 95 % interval over
resampled architectures, and Kendall's tau) over all architectures and (rho) over the better half of them, which a
search has to tell apart; and CPU seconds per network.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.candidates.proxies import SCORES, ProxyConfig, Ranks, Score
from evaluators.datasets.npz import NpzConfig
from evaluators.tasks import DEFAULT
from spaces.registry import create
from spaces.table import Table

TABLE = "nas/nas_bench_macro/nas_bench_macro_cifar10.csv.gz"
RESAMPLES = 1000


def main() -> None:
    """Score, correlate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="npz with x_train, y_train, x_test, y_test of CIFAR-10")
    parser.add_argument("--architectures", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64, help="images that jacov, naswot and grad_norm look at")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not 20 <= options.architectures <= 6561:
        parser.error("--architectures: allowed 20 to 6561")
    torch.set_num_threads(1)
    table = Table(str(Path(os.environ["COMPRESS_DATA"]) / TABLE))
    codes, accuracies = table.column("arch"), table.numbers("mean_acc")
    drawn = random.Random(options.seed).sample(range(len(codes)), options.architectures)
    accuracy = np.array([accuracies[row] for row in drawn])
    scores, seconds = score([codes[row] for row in drawn], options.images, options.batch, options.seed)
    print(f"NAS-Bench-Macro, {len(drawn)} of {len(codes):,} architectures, seed {options.seed}, {options.batch} images")
    print(f"{'score':38}{'rho':>7}{'95 % interval':>18}{'tau':>8}{'rho, better half':>19}{'CPU s / net':>13}")
    for names in combinations():
        values = combined([scores[name] for name in names])
        print(row(" + ".join(names), values, accuracy, sum(seconds[name] for name in names)))


def score(
    codes: Sequence[str], images: str, batch: int, seed: int
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, float]]:
    """Return the scores of the networks by name, and the mean seconds that each score took."""
    space = create("nas_bench_macro")
    data = NpzConfig(name="npz", path=images, batch_size=batch).load(DEFAULT, seed=seed)
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    seconds = dict.fromkeys(SCORES, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        evaluator = ProxyConfig(batch=batch).make(EvaluatorContext(space, data, "cpu", seed, Path(folder)))
        for code, name in itertools.product(codes, SCORES):
            started = time.process_time()
            found[name].append(evaluator.evaluate(space.parse(code), (name,), seed)[name])
            seconds[name] += (time.process_time() - started) / len(codes)
    return {name: np.array(values) for name, values in found.items()}, seconds


def combinations() -> list[tuple[Score, ...]]:
    """Return each score alone, every pair of those that look at weights, and all four of them."""
    alone: list[tuple[Score, ...]] = [(name,) for name in get_args(Score)]
    trained = [name for name in get_args(Score) if name not in ("params", "macs")]
    pairs: list[tuple[Score, ...]] = [*itertools.combinations(trained, 2), ("macs", "naswot"), ("macs", "synflow")]
    return [*alone, *pairs, tuple(trained)]


def combined(scores: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return the mean of the scores' ranks among these architectures, as the metric `proxy` has it."""
    if len(scores) == 1:
        return scores[0]
    ranks: Any = np.array([[Ranks(list(each))(value) for value in each] for each in scores])
    return np.asarray(ranks.mean(axis=0))


def row(name: str, values: np.ndarray[Any, Any], accuracy: np.ndarray[Any, Any], seconds: float) -> str:
    """Return one line of the table."""
    generator = np.random.default_rng(0)
    draws = (generator.integers(len(values), size=len(values)) for _ in range(RESAMPLES))
    low, high = np.quantile([spearmanr(values[each], accuracy[each]).statistic for each in draws], [0.025, 0.975])
    better = accuracy >= np.median(accuracy)
    rho = [spearmanr(values[each], accuracy[each]).statistic for each in (slice(None), better)]
    tau = kendalltau(values, accuracy).statistic
    interval = f"{low:.2f} .. {high:.2f}"
    return f"{name:38}{rho[0]:7.3f}{interval:>18}{tau:8.3f}{rho[1]:19.3f}{seconds:13.2f}"


if __name__ == "__main__":
    main()
