from __future__ import annotations

import itertools
import sys

import optuna
import pytest

from compress.core.errors import InputError
from search.objective import Direction
from search.strategies import StrategyContext
from search.strategies.mirror import Mirror
from search.strategies.optuna_samplers import OptunaStrategy
from spaces.registry import create

pytestmark = pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
SPACE = create("nats_size", {})
NAMES = ["random", "tpe", "nsga2", "nsga3", "qmc", "cmaes"]
MIRRORED = ["qmc", "cmaes", "nsga2", "nsga3", "gp"]


def sampler(name, directions: tuple[Direction, ...] = ("maximize",), **options):
    if name == "cmaes":
        pytest.importorskip("cmaes")
    context = StrategyContext(space=SPACE, directions=directions, trials=50, seed=0)
    return OptunaStrategy(name=name, options=options).sampler(context)


def strategy(name):
    if name == "cmaes":
        pytest.importorskip("cmaes")
    small = {"population_size": 6} if name in ("nsga2", "nsga3") else {"n_startup_trials": 5} if name == "gp" else {}
    return OptunaStrategy(name=name, options=small)


def work(study, trials):
    for _ in range(trials):
        trial = study.ask()
        arch = SPACE.suggest(trial)
        study.tell(trial, float(sum(arch.values())))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_search_goes_on_as_it_would_have(name):
    whole = work(optuna.create_study(direction="maximize", sampler=sampler(name)), 40)
    storage = optuna.storages.InMemoryStorage()
    first = optuna.create_study(direction="maximize", sampler=sampler(name), storage=storage, study_name="it")
    work(first, 17)
    again = optuna.load_study(study_name="it", storage=storage, sampler=sampler(name))
    assert work(again, 23) == whole
    assert len({str(params) for params in whole}) > 20


@pytest.mark.parametrize("name", ["random", "qmc", "cmaes"])
def test_a_failed_trial_does_not_shift_what_follows(name):
    whole = work(optuna.create_study(direction="maximize", sampler=sampler(name)), 30)
    study = optuna.create_study(direction="maximize", sampler=sampler(name))
    for count in (2, 11, 17):
        work(study, count)
        study.tell(study.ask(SPACE.distributions()), state=optuna.trial.TrialState.FAIL)
    assert [trial.params for trial in study.trials if trial.state.name == "COMPLETE"] == whole


def test_two_processes_propose_different_architectures():
    study = optuna.create_study(sampler=sampler("random"))
    ours = [study.ask(SPACE.distributions()).params for _ in range(5)]
    study.sampler = sampler("random")
    theirs = [study.ask(SPACE.distributions()).params for _ in range(5)]
    assert not any(params in ours for params in theirs)


@pytest.mark.parametrize("name", MIRRORED)
def test_a_search_of_a_conditional_space_goes_on_after_a_restart(chain, name):
    trials = 10 if name == "gp" else 40
    whole = chain.search(chain.sampler(strategy(name)), trials)
    again = chain.search(chain.sampler(strategy(name)), trials // 2)
    again = chain.search(chain.sampler(strategy(name)), trials - trials // 2, again)
    assert [trial.params for trial in again.trials] == [trial.params for trial in whole.trials]


@pytest.mark.parametrize("name", ["cmaes", "nsga2", "nsga3"])
def test_conditional_decisions_are_learned(chain, name):
    """The last proposals are far better than chance, which reaches 0.6."""
    study = chain.search(chain.sampler(strategy(name)), 80)
    assert sum(trial.value for trial in study.trials[-20:]) / 20 > 1.2


@pytest.mark.parametrize("name", MIRRORED)
def test_trials_that_overlap_fail_or_are_pruned_are_no_trouble(chain, name):
    trials = 12 if name == "gp" else 40
    study = chain.search_with_trouble(chain.sampler(strategy(name)), trials)
    assert len(study.trials) == trials
    for trial in study.trials:
        chain.space.check(trial.params)


def test_numbers_on_a_scale_follow_the_order_of_the_choices():
    """Accuracy that grows with every width: CMA-ES soon proposes wide networks only."""
    pytest.importorskip("cmaes")
    found, chance = (optuna.create_study(direction="maximize", sampler=sampler(name)) for name in ("cmaes", "random"))
    last, drawn = work(found, 100)[-20:], work(chance, 100)
    widest = sum(max(decision.choices) for decision in SPACE.decisions)
    assert sum(sum(params.values()) for params in last) / 20 > 0.8 * widest
    assert max(sum(params.values()) for params in last) > max(sum(params.values()) for params in drawn)


def test_a_sequence_spreads_better_than_chance():
    """The first 64 points of a Sobol sequence have each choice of each decision eight times."""
    study = optuna.create_study(direction="maximize", sampler=sampler("qmc"))
    work(study, 64)
    for decision in SPACE.decisions:
        counts = [sum(trial.params[decision.name] == choice for trial in study.trials) for choice in decision.choices]
        assert counts == [8] * 8


def test_the_mirror_of_a_study_is_kept_up_to_date(chain):
    mirror = Mirror(chain.space.distributions(), ordered=True)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    first, second = study.ask(), study.ask()
    chain.space.suggest(first)
    chain.space.suggest(second)
    assert [trial.state.name for trial in mirror.update(study).trials] == ["RUNNING", "RUNNING"]
    study.tell(second, 2.0)
    assert [trial.value for trial in mirror.update(study).trials] == [None, 2.0]
    study.tell(first, 1.0)
    copies = mirror.update(study).trials
    assert [trial.value for trial in copies] == [1.0, 2.0]
    for trial, copied in itertools.product(study.trials, copies):
        for name, value in copied.params.items() if trial.number == copied.number else ():
            choices = chain.choices[name]
            assert choices[value] == trial.params.get(name, choices[len(choices) // 2])
    other = optuna.create_study(direction="maximize")
    assert mirror.update(other).trials == []


def test_cmaes_says_what_it_lacks(monkeypatch):
    with pytest.raises(InputError, match="cmaes searches for one value; got 2 objectives; allowed for several: gp"):
        OptunaStrategy(name="cmaes").sampler(StrategyContext(SPACE, ("maximize", "minimize"), 50, 0))
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(InputError, match=r"pip install 'compress\[cmaes\]'"):
        OptunaStrategy(name="cmaes").sampler(StrategyContext(SPACE, ("maximize",), 50, 0))
