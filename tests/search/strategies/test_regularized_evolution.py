"""Aging evolution: who is in the population, who becomes a parent, and what a child is."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from search.strategies.regularized_evolution import RegularizedEvolutionSampler, RegularizedEvolutionStrategy
from search.strategies.sampler import Finished, Params
from spaces.architecture import Architecture


def changes(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Return the decisions that both took, with different choices."""
    return {name for name in one.keys() & other.keys() if one[name] != other[name]}


def test_population_grows_to_its_size_and_stays(chain: Any) -> None:
    trials = chain.history(50)
    sampler = RegularizedEvolutionSampler(population=12, sample=3)
    assert [len(sampler.members(trials[:count])) for count in range(50)] == [min(count, 12) for count in range(50)]


def test_a_trial_leaves_after_as_many_others_as_the_population_holds(chain: Any) -> None:
    trials = chain.history(50)
    sampler = RegularizedEvolutionSampler(population=12, sample=3)
    for place, trial in enumerate(trials[:38]):
        assert trial in sampler.members(trials[: place + 12])
        assert trial not in sampler.members(trials[: place + 13])


def test_age_is_the_order_of_completion_not_of_numbers(chain: Any) -> None:
    trials = chain.history(20)
    late = [*trials[1:], trials[0]]
    assert trials[0] in RegularizedEvolutionSampler(population=5, sample=2).members(late)


def test_worst_leaves_where_asked_and_the_newest_of_equals_stays() -> None:
    trials = [Finished(number, {"a": number}, score) for number, score in enumerate([1.0, 3.0, 2.0, 1.0, 2.0])]
    sampler = RegularizedEvolutionSampler(population=3, sample=2, remove="worst")
    assert {trial.number for trial in sampler.members(trials)} == {1, 2, 4}
    assert {trial.number for trial in sampler.members(trials[:4])} == {1, 2, 3}


def test_proposals_are_random_until_the_population_is_finished_or_under_way() -> None:
    choices = {f"d{place}": tuple(range(10)) for place in range(10)}
    trials = [Finished(number, dict.fromkeys(choices, number), 0.0) for number in range(9)]
    sampler = RegularizedEvolutionSampler(population=10, sample=10)

    def distance(running: list[Params]) -> int:
        """Return how many decisions differ from the nearest trial."""
        params = sampler.propose(trials, running, choices, random.Random(0))
        return min(len(changes(params, trial.params)) for trial in trials)

    assert distance([]) > 3
    assert distance([trials[0].params]) == 1


def test_child_is_the_best_draw_with_one_decision_changed(chain: Any) -> None:
    trials = chain.history(30)
    sampler = RegularizedEvolutionSampler(population=20, sample=1000, space=chain.space)
    best = max(trials[-20:], key=lambda trial: trial.score)
    for seed in range(100):
        child = sampler.propose(trials, [], chain.choices, random.Random(seed))
        assert len(changes(child, best.params)) == 1
        assert chain.space.check(child) == child


def test_every_decision_and_every_other_choice_is_equally_likely() -> None:
    choices = {"a": (0, 1, 2), "b": (0, 1, 2), "c": (7,)}
    trials = [Finished(0, {"a": 0, "b": 0, "c": 7}, 1.0)]
    sampler = RegularizedEvolutionSampler(population=1, sample=1)
    children = Counter(
        tuple(sampler.propose(trials, [], choices, random.Random(seed)).values()) for seed in range(4000)
    )
    assert set(children) == {(1, 0, 7), (2, 0, 7), (0, 1, 7), (0, 2, 7)}
    assert all(abs(count - 1000) < 120 for count in children.values())  # four standard deviations


def test_one_draw_is_a_random_walk_whatever_the_scores() -> None:
    choices = {"a": tuple(range(10)), "b": (0, 1)}
    trials = [Finished(number, {"a": number, "b": 0}, float(number)) for number in range(10)]
    sampler = RegularizedEvolutionSampler(population=10, sample=1)
    children = [sampler.propose(trials, [], choices, random.Random(seed)) for seed in range(6000)]
    parents = Counter(child["a"] for child in children if child["b"] == 1)
    assert set(parents) == set(range(10))
    assert all(abs(count - 300) < 70 for count in parents.values())


def test_draws_are_with_replacement() -> None:
    choices = {"a": (0, 1), "b": (0, 1)}
    trials = [Finished(0, {"a": 0, "b": 0}, 0.0), Finished(1, {"a": 1, "b": 1}, 1.0)]
    sampler = RegularizedEvolutionSampler(population=2, sample=2, identity=1.0)
    parents = Counter(sampler.propose(trials, [], choices, random.Random(seed))["a"] for seed in range(4000))
    assert 0.22 < parents[0] / 4000 < 0.28  # both draws are the worse one


def test_identity_has_its_probability() -> None:
    choices = {"a": tuple(range(5))}
    trials = [Finished(0, {"a": 0}, 0.0)]
    sampler = RegularizedEvolutionSampler(population=1, sample=1, identity=0.05)
    copies = sum(sampler.propose(trials, [], choices, random.Random(seed))["a"] == 0 for seed in range(4000))
    assert 0.03 < copies / 4000 < 0.07


def test_known_architectures_are_avoided_on_request() -> None:
    choices = {"a": (0, 1), "b": (0, 1)}
    trials = [Finished(0, {"a": 0, "b": 0}, 1.0), Finished(1, {"a": 0, "b": 1}, 0.0)]
    sampler = RegularizedEvolutionSampler(population=2, sample=1, duplicates=False)
    running = [{"a": 1, "b": 1}]
    children = [sampler.propose(trials, running, choices, random.Random(seed)) for seed in range(50)]
    assert all(child == {"a": 1, "b": 0} for child in children)


def test_the_spaces_own_mutation_is_used(chain: Any) -> None:
    shallow = Architecture({"depth": 1, "operation1": "pool", "width": 8})
    chain.space.mutate = lambda arch, generator: shallow
    sampler = RegularizedEvolutionSampler(population=1, sample=1, space=chain.space)
    assert sampler.propose(chain.history(5), [], chain.choices, random.Random(0)) == dict(shallow)


def test_copies_without_duplicates_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match="identity proposes known architectures; it needs duplicates: true"):
        RegularizedEvolutionStrategy(identity=0.05, duplicates=False)


def test_evolution_finds_the_best_architecture(chain: Any) -> None:
    study = chain.search(chain.sampler(RegularizedEvolutionStrategy(population=15, sample=5)), 100)
    assert study.best_value == pytest.approx(chain.best)
