from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from search.strategies.auto import AutoSampler
from search.strategies.sampler import Finished, Params
from search.surrogate import Encoding, GaussianProcess

WIDTHS = {f"width{place}": CategoricalDistribution(tuple(range(8, 65, 8))) for place in range(5)}
KINDS = {f"layer{place}": CategoricalDistribution(("conv", "attention", "skip")) for place in range(6)}


def accuracy(params: Params) -> float:
    """Smooth in widths, with a peak inside the range."""
    return -sum((params[f"width{place}"] - 40 + 8 * place) ** 2 for place in range(5)) / 1000


def search(sampler: AutoSampler, trials: int, study: optuna.Study | None = None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = study or optuna.create_study(direction="maximize")
    study.sampler = sampler
    for _ in range(trials):
        trial = study.ask()
        params = {name: trial.suggest_categorical(name, WIDTHS[name].choices) for name in WIDTHS}
        study.tell(trial, accuracy(params))
    return study


@pytest.fixture(scope="module")
def whole() -> list[FrozenTrial]:
    """The trials of an uninterrupted search."""
    return search(AutoSampler(WIDTHS, seed=3), 40).trials


def resumed(trials: list[FrozenTrial]) -> optuna.Study:
    """A study that holds these trials already."""
    study = optuna.create_study(direction="maximize", sampler=AutoSampler(WIDTHS, seed=3))
    study.add_trials(trials)
    return study


def test_the_best_of_32768_is_found_in_50_trials_where_random_does_not_come_near() -> None:
    assert search(AutoSampler(WIDTHS, seed=1), 50).best_value == 0.0
    generator = random.Random(1)
    drawn = [{name: generator.choice(given.choices) for name, given in WIDTHS.items()} for _ in range(50)]
    assert max(map(accuracy, drawn)) < -0.3


def test_no_architecture_is_proposed_twice(whole: list[FrozenTrial]) -> None:
    assert len({tuple(trial.params.items()) for trial in whole}) == 40


def test_a_restart_proposes_what_an_uninterrupted_search_would_have(whole: list[FrozenTrial]) -> None:
    halved = search(AutoSampler(WIDTHS, seed=3), 13, resumed(whole[:27]))
    assert [trial.params for trial in halved.trials] == [trial.params for trial in whole]


def test_failed_trials_change_nothing(whole: list[FrozenTrial]) -> None:
    study = resumed(whole[:18])
    study.tell(study.ask(), state=TrialState.FAIL)
    search(AutoSampler(WIDTHS, seed=3), 7, study)
    complete = [trial.params for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert complete == [trial.params for trial in whole[:25]]


def test_workers_at_the_same_time_get_different_architectures(whole: list[FrozenTrial]) -> None:
    study = resumed(whole[:30])
    asked = []
    for _ in range(8):
        trial = study.ask()
        asked.append(tuple(trial.suggest_categorical(name, WIDTHS[name].choices) for name in WIDTHS))
    assert len(set(asked)) == 8


def test_the_first_trials_use_every_choice_equally_often() -> None:
    study = search(AutoSampler(WIDTHS, seed=5, initial=16), 16)
    for name, given in WIDTHS.items():
        used = [trial.params[name] for trial in study.trials]
        assert [used.count(choice) for choice in given.choices] == [2] * 8


def test_infeasible_architectures_are_not_proposed() -> None:
    def narrow(params: Params) -> bool:
        return sum(params.values()) <= 120

    study = search(AutoSampler(WIDTHS, seed=0, feasible=narrow), 50)
    assert all(narrow(trial.params) for trial in study.trials)
    assert study.best_value > -1.5


def test_only_rows_of_the_table_are_proposed() -> None:
    every = [dict(zip(WIDTHS, values, strict=True)) for values in itertools.product(range(8, 65, 8), repeat=5)]
    rows = random.Random(0).sample(every, 300)
    study = search(AutoSampler(WIDTHS, seed=0, candidates=rows), 60)
    assert all(trial.params in rows for trial in study.trials)
    assert study.best_value == max(map(accuracy, rows))


def test_decisions_without_an_order_are_learnt_too() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=AutoSampler(KINDS, seed=0))
    wanted = ["skip", "conv", "attention", "conv", "skip", "conv"]
    for _ in range(45):
        trial = study.ask()
        chosen = [trial.suggest_categorical(name, given.choices) for name, given in KINDS.items()]
        study.tell(trial, sum(a != b for a, b in zip(chosen, wanted, strict=True)))
    assert study.best_value == 0


def test_every_fifth_fit_stays_next_to_the_best(whole: list[FrozenTrial]) -> None:
    trials = whole
    for number in (19, 24, 29, 34):  # the first 15 fill the space; up to 40 there is a fit for each
        best = max(trials[:number], key=lambda trial: trial.value).params
        assert sum(trials[number].params[name] != best[name] for name in WIDTHS) == 1


def test_parameters_that_only_some_trials_have_do_not_disturb() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=AutoSampler(seed=0, initial=4))  # no search space given: what trials share
    for number in range(20):
        trial = study.ask()
        value = sum(trial.suggest_categorical(f"layer{place}", range(6)) for place in range(7))
        if number % 2:
            value -= trial.suggest_categorical("extra", (100, 101))
        study.tell(trial, value)
    assert len(study.trials) == 20


def test_the_process_interpolates_what_it_knows_and_is_unsure_elsewhere() -> None:
    choices: dict[str, tuple[Any, ...]] = {name: tuple(given.choices) for name, given in WIDTHS.items()}
    generator = random.Random(0)
    rows = [{name: generator.choice(given) for name, given in choices.items()} for _ in range(60)]
    scores = np.array([accuracy(row) for row in rows])
    scores = (scores - scores.mean()) / scores.std()
    encoding = Encoding(choices)
    process = GaussianProcess(encoding, encoding.encode(rows[:50]), scores[:50], range(50))
    mean, deviation = process.predict(encoding.encode(rows))
    assert np.abs(mean[:50] - scores[:50]).max() < 0.3
    assert np.corrcoef(mean[50:], scores[50:])[0, 1] > 0.9
    assert deviation[50:].mean() > 2 * deviation[:50].mean()


def test_an_untaken_decision_is_a_choice_of_its_own() -> None:
    encoding = Encoding({"depth": (1, 2), "kernel": (3, 5)})
    _, columns = encoding.encode([{"depth": 1}, {"depth": 1, "kernel": 3}])
    assert (columns.sum(1) == 2).all()
    assert not (columns[0] == columns[1]).all()


@pytest.mark.parametrize("finished", [0, 1])
def test_a_study_with_next_to_nothing_in_it_gets_a_proposal(finished: int) -> None:
    choices = {name: tuple(given.choices) for name, given in WIDTHS.items()}
    known = [Finished(0, {name: 8 for name in WIDTHS}, 1.0)][:finished]
    proposal = AutoSampler(WIDTHS, initial=1).propose(known, [], choices, random.Random(0))
    assert set(proposal) == set(WIDTHS)
