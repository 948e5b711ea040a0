"""Strategies of NNI's: what they know of a search, and what is said where NNI is missing."""

from __future__ import annotations

import importlib.util
import random
from typing import Any

import pytest

from compress.core.errors import InputError
from search.strategies.nni import NNISampler, NNIStrategy
from search.strategies.sampler import Finished

NAMES = ["Random", "TPE", "RegularizedEvolution"]
nni_installed = importlib.util.find_spec("nni") is not None
needs_nni = pytest.mark.skipif(not nni_installed, reason="NNI is not installed: pip install 'compress[nni]'")
every_strategy = pytest.mark.parametrize("name", NAMES)
SMALL: dict[str, dict[str, Any]] = {"RegularizedEvolution": {"population_size": 8, "sample_size": 4}}


def make(chain: Any, name: str, **others: Any) -> Any:
    return chain.sampler(NNIStrategy(name=f"nni:{name}", options=SMALL.get(name, {})), **others)


@pytest.mark.skipif(nni_installed, reason="NNI is installed")
@every_strategy
def test_without_nni_the_extra_is_named(chain: Any, name: str) -> None:
    with pytest.raises(InputError, match=rf"strategy nni:{name} needs the extra: pip install 'compress\[nni\]'"):
        make(chain, name)


@needs_nni
@every_strategy
def test_resumed_search_proposes_what_the_uninterrupted_one_does(chain: Any, name: str) -> None:
    whole = chain.search(make(chain, name), 40)
    part = chain.search(make(chain, name), 25)
    resumed = chain.search(make(chain, name), 15, study=part)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]


@needs_nni
@every_strategy
def test_overlapping_failed_pruned_and_endless_trials_are_no_obstacle(chain: Any, name: str) -> None:
    study = chain.search_with_trouble(make(chain, name), 80)
    for trial in study.trials:
        chain.space.check(trial.params)


@needs_nni
@every_strategy
def test_constraints_are_kept(chain: Any, name: str) -> None:
    study = chain.search(make(chain, name, feasible=lambda params: params["width"] < 32), 30)
    assert {trial.params["width"] for trial in study.trials} <= {8, 16}


@needs_nni
@every_strategy
def test_an_exhausted_space_gives_repeats_not_an_error(name: str) -> None:
    choices = {"a": (0, 1), "b/c": ("x", "y")}
    everything = [{"a": a, "b/c": b} for a in (0, 1) for b in ("x", "y")]
    sampler = NNISampler(strategy=name)
    finished = [Finished(number, params, float(number)) for number, params in enumerate(everything)]
    seen = [sampler.propose(finished[:3], [], choices, random.Random(seed)) for seed in range(5)]
    if name != "RegularizedEvolution":  # each gene changes with probability 0.05 there
        assert seen == [everything[3]] * 5
    assert sampler.propose(finished, [], choices, random.Random(0)) in everything


@needs_nni
def test_evolution_mutates_the_population_of_the_study() -> None:
    choices = {f"d{place}": tuple(range(9)) for place in range(20)}
    finished = [Finished(number, {name: number for name in choices}, float(number == 5)) for number in range(8)]
    options = {"population_size": 8, "sample_size": 8}
    sampler = NNISampler(strategy="RegularizedEvolution", options=options)
    for seed in range(10):
        child = sampler.propose(finished, [], choices, random.Random(seed))
        assert 1 <= sum(value != 5 for value in child.values()) <= 8


@needs_nni
def test_tpe_prefers_what_scored_high() -> None:
    choices = {f"d{place}": tuple(range(10)) for place in range(6)}
    generator = random.Random(0)
    finished = []
    for number in range(60):
        params = {name: generator.randrange(10) for name in choices}
        finished.append(Finished(number, params, float(sum(params.values()))))
    sampler = NNISampler(strategy="TPE")
    drawn = [sampler.propose(finished, [], choices, random.Random(seed)) for seed in range(10)]
    assert sum(sum(params.values()) for params in drawn) / 60 > 6  # 4.5 at random; below 3 if it minimized


@needs_nni
def test_unknown_options_name_the_nearest(chain: Any) -> None:
    config = NNIStrategy(name="nni:RegularizedEvolution", options={"populaton_size": 8})
    with pytest.raises(InputError, match=r"RegularizedEvolution takes no such .* did you mean 'population_size'"):
        chain.sampler(config)
