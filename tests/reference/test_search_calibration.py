"""Strategies on the NATS size table (32,768 architectures, CIFAR-10): the best accuracy found, against known figures.

The figures are means over 300 searches of the same algorithms written independently; a re-implementation is allowed
0.03. Over 3,000 searches REINFORCE with learning rate 0.2 comes to 93.16 at 100 evaluations, at the edge of what is
allowed; here are 60 of its searches, which take the longest.
"""

from __future__ import annotations

import csv
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.strategies.local_search import LocalSearchSampler
from search.strategies.ppo import PPOSampler
from search.strategies.regularized_evolution import RegularizedEvolutionSampler
from search.strategies.reinforce import ReinforceSampler
from search.strategies.sampler import Choices, Finished, SpaceSampler

Table = dict[tuple[int, ...], float]
SEEDS = range(300, 600)
RANDOM_AT_200 = 93.2235  # exact: the expected maximum of 200 draws from the table


class RandomSampler(SpaceSampler):
    def propose(self, finished: Any, running: Any, choices: Choices, generator: random.Random) -> dict[str, Any]:
        return {name: generator.choice(given) for name, given in choices.items()}


@pytest.fixture(scope="module")
def table(shared_data: Path) -> Table:
    with (shared_data / "bossnas" / "nats_ss_cifar10_accuracy.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    return {tuple(map(int, row[:5])): float(row[5]) for row in rows}


def best_after(table: Table, sampler: SpaceSampler, seed: int, marks: tuple[int, ...]) -> list[float]:
    """Search; return the best accuracy after each number of evaluations in `marks`."""
    choices = {f"c{place}": tuple(range(8, 65, 8)) for place in range(1, 6)}
    finished: list[Finished] = []
    for number in range(marks[-1]):
        params = sampler.propose(finished, [], choices, random.Random(f"{seed}:{number}"))
        finished.append(Finished(number, params, table[tuple(params[name] for name in choices)]))
    return [max(trial.score for trial in finished[:mark]) for mark in marks]


def means(table: Table, make: Callable[[int], SpaceSampler], seeds: range, marks: tuple[int, ...]) -> list[float]:
    runs = [best_after(table, make(seed), seed, marks) for seed in seeds]
    return [statistics.mean(best) for best in zip(*runs, strict=True)]


def evolution(seed: int, **options: Any) -> SpaceSampler:
    return RegularizedEvolutionSampler(seed=seed, sample=10, **options)


def reinforce(seed: int, learning_rate: float) -> SpaceSampler:
    return ReinforceSampler(seed=seed, learning_rate=learning_rate, standardize=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda seed: RandomSampler(seed=seed), (93.10, 93.22, 93.34), id="random"),
        pytest.param(lambda seed: evolution(seed, population=50), (93.34, 93.51, 93.63), id="aging, 50"),
        pytest.param(lambda seed: evolution(seed, population=20), (93.45, 93.55, 93.63), id="aging, 20"),
        pytest.param(
            lambda seed: evolution(seed, population=20, remove="worst"), (93.45, 93.53, 93.57), id="drop worst, 20"
        ),
        pytest.param(lambda seed: reinforce(seed, 0.2), (93.19, 93.31, 93.48), id="reinforce, 0.2"),
        pytest.param(lambda seed: reinforce(seed, 0.5), (93.22, 93.39, 93.59), id="reinforce, 0.5"),
    ],
)
def test_best_accuracy_found_is_the_calibrated_one(table: Table, make: Any, expected: tuple[float, ...]) -> None:
    seeds = SEEDS[:60] if isinstance(make(0), ReinforceSampler) else SEEDS
    assert means(table, make, seeds, (100, 200, 500)) == pytest.approx(expected, abs=0.03)


@pytest.mark.slow
def test_ppo_with_the_lstm_controller_beats_random_as_it_is(table: Table) -> None:
    (best,) = means(table, lambda seed: PPOSampler(seed=seed), range(15), (200,))
    assert best > RANDOM_AT_200 + 0.2


@pytest.mark.parametrize("improvement", ["first", "best"])
def test_local_search_beats_random(table: Table, improvement: Any) -> None:
    (best,) = means(table, lambda seed: LocalSearchSampler(seed=seed, improvement=improvement), range(30), (200,))
    assert best > RANDOM_AT_200 + 0.15


def test_reinforce_beats_random_as_it_is(table: Table) -> None:
    (best,) = means(table, lambda seed: ReinforceSampler(seed=seed), range(60), (200,))
    assert best > RANDOM_AT_200 + 0.08
