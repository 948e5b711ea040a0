from __future__ import annotations

import optuna
import pytest

from search.objective import Direction
from search.strategies import StrategyContext
from search.strategies.optuna_samplers import OptunaStrategy
from spaces.registry import create

SPACE = create("nats_size", {})
NAMES = ["random", "tpe", "nsga2", "nsga3", "qmc"]


def sampler(name, directions: tuple[Direction, ...] = ("maximize",), **options):
    context = StrategyContext(space=SPACE, directions=directions, trials=50, seed=0)
    return OptunaStrategy(name=name, options=options).sampler(context)


def work(study, trials):
    for _ in range(trials):
        trial = study.ask()
        arch = SPACE.suggest(trial)
        study.tell(trial, float(sum(arch.values())))
    return [trial.params for trial in study.trials]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_search_goes_on_as_it_would_have(name):
    whole = work(optuna.create_study(direction="maximize", sampler=sampler(name)), 30)
    storage = optuna.storages.InMemoryStorage()
    first = optuna.create_study(direction="maximize", sampler=sampler(name), storage=storage, study_name="it")
    work(first, 17)
    again = optuna.load_study(study_name="it", storage=storage, sampler=sampler(name))
    assert work(again, 13) == whole
    assert len({str(params) for params in whole}) > 25


def test_a_failed_trial_does_not_shift_what_follows():
    whole = work(optuna.create_study(sampler=sampler("random")), 5)
    study = optuna.create_study(sampler=sampler("random"))
    work(study, 2)
    study.tell(study.ask(SPACE.distributions()), state=optuna.trial.TrialState.FAIL)
    work(study, 3)
    assert [trial.params for trial in study.trials if trial.state.name == "COMPLETE"] == whole


def test_two_processes_propose_different_architectures():
    study = optuna.create_study(sampler=sampler("random"))
    ours = [study.ask(SPACE.distributions()).params for _ in range(5)]
    study.sampler = sampler("random")
    theirs = [study.ask(SPACE.distributions()).params for _ in range(5)]
    assert not any(params in ours for params in theirs)


def test_a_grid_is_walked_once_and_its_end_ends_nothing():
    space = create("nats_size", {})
    choices = {decision.name: list(decision.choices[:2]) for decision in space.decisions}
    study = optuna.create_study(sampler=sampler("grid", search_space=choices))
    distributions = {name: optuna.distributions.CategoricalDistribution(given) for name, given in choices.items()}
    for _ in range(32):
        study.tell(study.ask(distributions), 0.0)
    assert len({str(trial.params) for trial in study.trials}) == 32
