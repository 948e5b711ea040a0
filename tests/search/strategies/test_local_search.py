"""Hill climbing: what is tried, when the climb moves on, and when it starts again."""

from __future__ import annotations

import random
from typing import Any

import pytest

from search.strategies.local_search import LocalSearchSampler, LocalSearchStrategy
from search.strategies.sampler import Finished, Params

CHOICES = {"a": (0, 1, 2), "b": (0, 1, 2)}


def trial(number: int, a: int, b: int, score: float) -> Finished:
    return Finished(number, {"a": a, "b": b}, score)


def proposals(sampler: LocalSearchSampler, finished: list[Finished], running: list[Params] | None = None) -> set[Any]:
    """Return what is proposed after `finished`, with many generators."""
    drawn = [sampler.propose(finished, running or [], CHOICES, random.Random(seed)) for seed in range(200)]
    return {(params["a"], params["b"]) for params in drawn}


def test_neighbours_of_the_start_are_proposed_and_none_twice() -> None:
    start = [trial(0, 0, 0, 5.0)]
    assert proposals(LocalSearchSampler(), start) == {(1, 0), (2, 0), (0, 1), (0, 2)}
    tried = [*start, trial(1, 1, 0, 4.0), trial(2, 0, 2, 4.0)]
    assert proposals(LocalSearchSampler(), tried) == {(2, 0), (0, 1)}
    assert proposals(LocalSearchSampler(), tried, running=[{"a": 2, "b": 0}]) == {(0, 1)}


def test_first_improvement_moves_at_once() -> None:
    finished = [trial(0, 0, 0, 5.0), trial(1, 1, 0, 6.0)]
    assert proposals(LocalSearchSampler(), finished) == {(2, 0), (1, 1), (1, 2)}


def test_best_improvement_tries_all_neighbours_and_moves_to_the_best() -> None:
    finished = [trial(0, 0, 0, 5.0), trial(1, 1, 0, 6.0), trial(2, 0, 2, 7.0), trial(3, 2, 0, 1.0)]
    sampler = LocalSearchSampler(improvement="best")
    assert proposals(sampler, finished) == {(0, 1)}
    assert proposals(sampler, [*finished, trial(4, 0, 1, 2.0)]) == {(1, 2), (2, 2)}


@pytest.mark.parametrize("improvement", ["first", "best"])
def test_a_new_climb_starts_at_random_after_an_optimum(improvement: Any) -> None:
    around = [trial(1, 1, 0, 4.0), trial(2, 2, 0, 4.0), trial(3, 0, 1, 4.0), trial(4, 0, 2, 4.0)]
    optimum = [trial(0, 0, 0, 5.0), *around]
    sampler = LocalSearchSampler(improvement=improvement)
    assert proposals(sampler, optimum) == {(a, b) for a in range(3) for b in range(3)}
    restarted = [*optimum, trial(5, 1, 1, 1.0)]
    assert proposals(sampler, restarted) == {(2, 1), (1, 2)}  # (1, 0) and (0, 1) are known


def test_a_start_that_finishes_late_is_taken_if_it_is_better() -> None:
    assert proposals(LocalSearchSampler(), [trial(0, 0, 0, 5.0), trial(1, 2, 2, 4.0)]) <= {
        (1, 0), (2, 0), (0, 1), (0, 2)
    }  # fmt: skip
    assert proposals(LocalSearchSampler(), [trial(0, 0, 0, 5.0), trial(1, 2, 2, 6.0)]) == {
        (0, 2), (1, 2), (2, 0), (2, 1)
    }  # fmt: skip


def test_steps_that_break_a_constraint_are_not_waited_for() -> None:
    sampler = LocalSearchSampler(improvement="best", feasible=lambda params: params["b"] < 2 and params["a"] < 2)
    finished = [trial(0, 0, 0, 5.0), trial(1, 1, 0, 4.0)]
    assert proposals(sampler, finished) == {(0, 1)}
    assert proposals(sampler, [*finished, trial(2, 0, 1, 6.0)]) == {(1, 1)}


def test_a_repeated_architecture_changes_nothing() -> None:
    finished = [trial(0, 0, 0, 5.0), trial(1, 1, 0, 4.0), trial(2, 1, 0, 9.0)]
    assert proposals(LocalSearchSampler(), finished) == {(2, 0), (0, 1), (0, 2)}


@pytest.mark.parametrize("improvement", ["first", "best"])
def test_local_search_finds_the_best_architecture_with_conditional_decisions(chain: Any, improvement: Any) -> None:
    study = chain.search(chain.sampler(LocalSearchStrategy(improvement=improvement)), 100)
    assert study.best_value == pytest.approx(chain.best)


def test_nothing_is_evaluated_twice_until_everything_is_known(chain: Any) -> None:
    study = chain.search(chain.sampler(LocalSearchStrategy()), 80)
    first = [frozenset(trial.params.items()) for trial in study.trials]
    assert len(set(first)) > 70  # random starts may fall on what is known
