"""What holds for every strategy of our own whose state is the finished trials."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from compress.core.errors import CompressError, InputError
from search.strategies import make_sampler
from search.strategies.auto import AutoStrategy
from search.strategies.local_search import LocalSearchStrategy
from search.strategies.ppo import PPOStrategy
from search.strategies.regularized_evolution import RegularizedEvolutionStrategy
from search.strategies.reinforce import ReinforceStrategy
from search.strategies.sampler import SpaceSampler
from search.strategies.strategy import StrategyBase

Make = Callable[[], StrategyBase]
MAKES: dict[str, Make] = {
    "evolution": lambda: RegularizedEvolutionStrategy(population=8, sample=4),
    "evolution without duplicates": lambda: RegularizedEvolutionStrategy(population=8, sample=4, duplicates=False),
    "local search, first": lambda: LocalSearchStrategy(),
    "local search, best": lambda: LocalSearchStrategy(improvement="best"),
    "reinforce": lambda: ReinforceStrategy(batch=5),
    "reinforce with the LSTM": lambda: ReinforceStrategy(controller="lstm", hidden=8, batch=5),
    "ppo": lambda: PPOStrategy(hidden=8, batch=5, passes=2),
}
every_strategy = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@every_strategy
def test_resumed_search_proposes_what_the_uninterrupted_one_does(chain: Any, make: Make) -> None:
    whole = chain.search(chain.sampler(make()), 40)
    part = chain.search(chain.sampler(make()), 23)
    resumed = chain.search(chain.sampler(make()), 17, study=part)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]


@every_strategy
def test_killed_trials_change_no_later_proposal(chain: Any, make: Make) -> None:
    whole = chain.search(chain.sampler(make()), 30)
    part = chain.search(chain.sampler(make()), 20)
    killed = part.ask()
    chain.space.suggest(killed)
    part.tell(killed, state=TrialState.FAIL)
    resumed = chain.search(chain.sampler(make()), 10, study=part)
    finished = [trial.params for trial in resumed.trials if trial.state == TrialState.COMPLETE]
    assert finished == [trial.params for trial in whole.trials]


@every_strategy
def test_overlapping_failed_pruned_and_endless_trials_are_no_obstacle(chain: Any, make: Make) -> None:
    study = chain.search_with_trouble(chain.sampler(make()), 120)
    assert {trial.state for trial in study.trials} == set(TrialState) - {TrialState.WAITING}
    assert study.best_value > 2.3  # within the best 5 of 117
    for trial in study.trials:
        chain.space.check(trial.params)


@every_strategy
def test_state_kept_between_proposals_is_the_state_computed_anew(chain: Any, make: Make) -> None:
    sampler = chain.sampler(make())
    study = chain.search_with_trouble(sampler, 60)
    again = copy.deepcopy(study)
    again.sampler = chain.sampler(make())
    for _ in range(3):
        assert chain.space.suggest(study.ask()) == chain.space.suggest(again.ask())


@every_strategy
def test_one_sampler_serves_two_studies(chain: Any, make: Make) -> None:
    sampler = chain.sampler(make())
    one, other = chain.search(sampler, 12), chain.search(sampler, 5)
    chain.search(sampler, 3, study=one)
    assert [trial.params for trial in one.trials[:5]] == [trial.params for trial in other.trials]
    assert [trial.params for trial in one.trials] == [
        trial.params for trial in chain.search(chain.sampler(make()), 15).trials
    ]


@every_strategy
def test_smaller_is_better_where_the_study_minimizes(chain: Any, make: Make) -> None:
    study = optuna.create_study(direction="minimize", sampler=chain.sampler(make()))
    for _ in range(80):
        trial = study.ask()
        study.tell(trial, -chain.score(chain.space.suggest(trial)))
    assert [trial.params for trial in study.trials] == [
        trial.params for trial in chain.search(chain.sampler(make()), 80).trials
    ]


@every_strategy
def test_proposals_keep_constraints(chain: Any, make: Make) -> None:
    def is_narrow(params: Any) -> bool:
        return bool(params["width"] < 32)

    study = chain.search(chain.sampler(make(), feasible=is_narrow), 60)
    assert {trial.params["width"] for trial in study.trials} <= {8, 16}


@every_strategy
def test_only_given_candidates_are_proposed(chain: Any, make: Make) -> None:
    candidates = [arch for arch in chain.space if arch["depth"] == 3][::2]
    study = chain.search(chain.sampler(make(), candidates=candidates), len(candidates))
    assert len({frozenset(trial.params.items()) for trial in study.trials}) == len(candidates)


@every_strategy
def test_several_objectives_are_refused(chain: Any, make: Make) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=chain.sampler(make()))
    with pytest.raises(InputError, match="searches for one value; got 2 objectives"):
        chain.space.suggest(study.ask())


@every_strategy
def test_sampler_works_on_any_study_of_categorical_decisions(chain: Any, make: Make) -> None:
    distributions = {name: optuna.distributions.CategoricalDistribution(range(5)) for name in "abc"}
    sampler = chain.sampler(make())
    sampler.search_space, sampler.space = distributions, None
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: sum(trial.suggest_categorical(name, range(5)) for name in "abc"), n_trials=120)
    assert study.best_value >= 11


class Proposing(SpaceSampler):
    proposal: Any = None

    def propose(self, *given: Any) -> Any:
        return self.proposal


def proposing(chain: Any, proposal: Any) -> dict[str, Any]:
    sampler = Proposing(chain.space.distributions(), space=chain.space)
    sampler.proposal = proposal
    trial = optuna.create_study(sampler=sampler).ask()
    chain.space.suggest(trial)
    return trial.params


@pytest.mark.parametrize(
    ("proposal", "words"),
    [
        (None, "gave None; allowed: a mapping"),
        ("depth", "gave 'depth'; allowed: a mapping"),
        ({"nothing": 1}, "gave 'nothing', which is no decision; allowed: "),
        ({0: 10**9}, "= 1000000000; allowed: "),
        ({0: np.arange(2)}, r"= array\(\[0, 1\]\); allowed: "),
    ],
)
def test_a_proposal_that_is_no_choice_is_one_sentence(chain: Any, proposal: Any, words: str) -> None:
    if isinstance(proposal, dict) and 0 in proposal:
        proposal = {next(iter(chain.space.distributions())): proposal[0]}
    with pytest.raises(CompressError, match=rf"^search\.strategy: Proposing\.propose gave .*{words[5:]}"):
        proposing(chain, proposal)


def test_a_proposed_number_of_another_library_is_the_choice(chain: Any) -> None:
    name, distribution = next(iter(chain.space.distributions().items()))
    found = proposing(chain, {name: torch.tensor(distribution.choices[-1])})
    assert found[name] is distribution.choices[-1]


def test_a_strategy_that_makes_no_sampler_is_one_sentence() -> None:
    class NoSampler(StrategyBase):
        name: str = "mine"

        def sampler(self, context: Any) -> Any:
            return None

    with pytest.raises(InputError, match=r"search\.strategy: mine makes None, which is no sampler"):
        make_sampler(NoSampler(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [*MAKES.values(), AutoStrategy], ids=[*MAKES, "auto"])
def test_what_was_given_up_is_not_proposed_again(chain: Any, make: Make) -> None:
    study = optuna.create_study(direction="maximize", sampler=chain.sampler(make()))
    for _ in range(40):
        trial = study.ask()
        arch = chain.space.suggest(trial)
        bad = arch["width"] == 8 or arch["depth"] == 2  # some time in the midst of its evaluation
        study.tell(trial, None if bad else chain.score(arch), state=TrialState.PRUNED if bad else TrialState.COMPLETE)
    given_up = [tuple(trial.params.items()) for trial in study.trials if trial.state == TrialState.PRUNED]
    assert len(set(given_up)) == len(given_up) < 40
