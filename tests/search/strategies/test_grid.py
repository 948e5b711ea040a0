from __future__ import annotations

import optuna
import pytest

from compress.core.errors import InputError
from search.strategies.grid import GridSampler, grid_of
from search.strategies.optuna_samplers import OptunaStrategy
from spaces.registry import create


def params_of(study):
    return [trial.params for trial in study.trials if trial.state.name != "FAIL"]


def test_every_architecture_of_a_conditional_space_comes_once_and_then_the_grid_is_exhausted(chain):
    sampler = chain.sampler(OptunaStrategy(name="grid"))
    study = chain.search(sampler, chain.space.count() - 1)
    assert not sampler.is_exhausted(study)
    study = chain.search(sampler, 1, study)
    assert sampler.is_exhausted(study)
    assert {frozenset(params.items()) for params in params_of(study)} == {
        frozenset(arch.items()) for arch in chain.space
    }


def test_a_loop_of_optunas_ends_with_the_grid(chain):
    study = optuna.create_study(direction="maximize", sampler=chain.sampler(OptunaStrategy(name="grid")))
    study.optimize(lambda trial: chain.score(chain.space.suggest(trial)), n_trials=1000)
    assert len(study.trials) == chain.space.count()


def test_a_grid_goes_on_after_a_restart_and_makes_up_for_what_failed(chain):
    whole = chain.search(chain.sampler(OptunaStrategy(name="grid")), 30)
    study = chain.search(chain.sampler(OptunaStrategy(name="grid")), 11)
    failed = study.ask()
    chain.space.suggest(failed)
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    study = chain.search(chain.sampler(OptunaStrategy(name="grid")), 19, study)
    assert params_of(study) == params_of(whole)


def test_workers_share_a_grid(chain):
    study = chain.search_with_trouble(chain.sampler(OptunaStrategy(name="grid")), 60)
    assert len({str(params) for params in params_of(study)}) == len(params_of(study))


def test_a_grid_over_given_choices_has_only_those(chain):
    options = {"search_space": {"width": [8, 32], "depth": [1, 2]}}
    sampler = chain.sampler(OptunaStrategy(name="grid", options=options))
    assert sampler.count == 2 * (3 + 9)
    study = chain.search(sampler, sampler.count)
    assert {params["width"] for params in params_of(study)} == {8, 32}
    assert {params["depth"] for params in params_of(study)} == {1, 2}


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"widht": [8]}, "did you mean 'width'"),
        ({"width": [9]}, r"got 9; allowed \[8, 16, 32\]"),
        ({"width": []}, "a list of choices"),
        ({"width": [8, 8]}, "twice"),
    ],
)
def test_wrong_choices_are_refused(chain, choices, words):
    with pytest.raises(InputError, match=words):
        chain.sampler(OptunaStrategy(name="grid", options={"search_space": choices}))


def test_a_space_larger_than_memory_is_no_trouble():
    space = create("mobilenetv3", {})
    sampler = grid_of(space, None, seed=0)
    assert sampler.count > 10**15
    study = optuna.create_study(sampler=sampler)
    archs = [space.suggest(study.ask()) for _ in range(20)]
    assert len(set(archs)) == 20


def test_the_order_comes_from_the_seed_and_has_every_number_once():
    def walk(seed: int) -> list[int]:
        study = optuna.create_study(sampler=GridSampler(50, lambda number: {"x": number}, seed))
        return [study.ask().suggest_categorical("x", list(range(50))) for _ in range(50)]

    assert sorted(walk(0)) == list(range(50))
    assert walk(0) == walk(0) != walk(1)
