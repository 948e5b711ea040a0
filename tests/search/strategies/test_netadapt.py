from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from compress.core.errors import InputError
from evaluators.candidates.evaluator import Evaluator, Metrics
from search.judge import Judge
from search.objective import ObjectiveConfig
from search.outcome import best
from search.runner import Runner
from search.strategies.adaptation import Network
from search.strategies.netadapt import NetAdaptSampler, NetAdaptStrategy
from search.strategies.sampler import Params
from search.strategies.strategy import StrategyContext
from spaces.architecture import Architecture
from spaces.registry import create, open_preset
from spaces.space import Space

WIDTHS = {f"width{place}": CategoricalDistribution(tuple(range(8, 65, 8))) for place in range(6)}
UNIT_COST = {"width0": 1, "width1": 2, "width2": 3, "width3": 4, "width4": 5, "width5": 6}
FULL = 64 * sum(UNIT_COST.values())


def latency(params: Params) -> float:
    """Additive, as the oracle of the paper's argument has it."""
    return float(sum(UNIT_COST[name] * params[name] for name in params))


def accuracy(params: Params) -> float:
    """A sum of concave functions of single widths."""
    return 90 + sum((place + 1) * math.sqrt(params[f"width{place}"]) for place in range(6)) / 10


def sampler(**options: Any) -> NetAdaptSampler:
    return NetAdaptSampler(WIDTHS, latency, **{"target": 0.5, "delta": 0.04, **options})


def suggest(trial: optuna.Trial) -> Params:
    return {name: trial.suggest_categorical(name, WIDTHS[name].choices) for name in WIDTHS}


def adapted(own: NetAdaptSampler, score: Callable[[Params], float] = accuracy) -> optuna.Study:
    """Let Optuna's own loop run until the sampler ends it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=own)
    study.optimize(lambda trial: score(suggest(trial)), n_trials=2000)
    return study


def path(own: NetAdaptSampler, study: optuna.Study) -> list[Params]:
    return [trial.params for trial in reversed(own.winners(study))]


def steps(own: NetAdaptSampler, study: optuna.Study) -> Iterator[tuple[Network, Network]]:
    return itertools.pairwise(step.network for step in own.progress(study).path)


def changed(before: Params, after: Params) -> list[str]:
    return [name for name in before if before[name] != after[name]]


# The invariants of NetAdapt.


@pytest.mark.parametrize("select", ["ratio", "score"])
@pytest.mark.parametrize("delta", [0.01, 0.04, 0.1])
def test_every_step_saves_delta_and_the_first_network_at_the_target_ends_it(select: str, delta: float) -> None:
    own = sampler(select=select, delta=delta)
    study = adapted(own)
    costs = [latency(params) for params in path(own, study)]
    assert costs[0] == FULL
    assert all(before - after >= delta * FULL for before, after in itertools.pairwise(costs))
    assert costs[-1] <= 0.5 * FULL < costs[-2]
    assert len(costs) - 1 <= math.ceil(0.5 / delta)
    assert own.is_exhausted(study) and len(study.trials) < 2000


def test_each_proposal_narrows_one_decision_just_so_far_that_it_saves_delta() -> None:
    own = sampler(delta=0.04)
    names = []
    for network in own.rules.proposals(own.rules.widest, 0):
        (name,) = changed(own.rules.widest.params, network.params)
        assert FULL - latency(network.params) >= 0.04 * FULL
        assert FULL - latency({**network.params, name: network.params[name] + 8}) < 0.04 * FULL
        names.append(name)
    assert names == list(WIDTHS)


def test_a_decision_that_cannot_save_delta_is_left_out() -> None:
    own = sampler(delta=0.1)  # widths 0 and 1 are 5 % and 10 % of the cost, and some is left of them
    widest = own.rules.widest
    names = {name for each in own.rules.proposals(widest, 0) for name in changed(widest.params, each.params)}
    assert names == {"width2", "width3", "width4", "width5"}


def test_where_accuracy_is_a_sum_over_layers_the_choice_is_the_best_slope() -> None:
    own = sampler()
    for before, after in steps(own, adapted(own)):
        (chosen,) = changed(before.params, after.params)
        slopes = {}
        for network in own.rules.proposals(before, 0):
            (name,) = changed(before.params, network.params)
            lost = (int(name[-1]) + 1) * (math.sqrt(before.params[name]) - math.sqrt(network.params[name])) / 10
            slopes[name] = lost / (before.cost - network.cost)
        assert slopes[chosen] == pytest.approx(min(slopes.values()))


def test_the_originals_choice_is_the_highest_score_of_the_iteration() -> None:
    own = sampler(select="score")
    for before, after in steps(own, adapted(own)):
        assert accuracy(after.params) == max(accuracy(network.params) for network in own.rules.proposals(before, 0))


def test_of_proposals_that_lose_nothing_the_one_that_saves_most_is_accepted() -> None:
    own = sampler()
    for before, after in steps(own, adapted(own, lambda params: 90.0)):
        assert after.cost == min(network.cost for network in own.rules.proposals(before, 0))


def test_delta_decays_from_step_to_step() -> None:
    own = sampler(delta=0.1, decay=0.5, target=0.3)
    costs = [latency(params) for params in path(own, adapted(own))]
    for step, (before, after) in enumerate(itertools.pairwise(costs)):
        assert before - after >= 0.1 * 0.5**step * FULL


def test_it_ends_where_no_decision_saves_enough() -> None:
    own = sampler(target=0.01, delta=0.2)
    study = adapted(own)
    assert own.is_exhausted(study)
    assert "no proposal saves enough" in own.summary(study)


def test_a_narrower_choice_that_the_estimate_thinks_dearer_does_no_harm() -> None:
    def bumpy(params: Params) -> float:
        return latency(params) + (100 if params["width5"] == 48 else 0)

    own = NetAdaptSampler(WIDTHS, bumpy, target=0.5, delta=0.04)
    costs = [bumpy(params) for params in path(own, adapted(own))]
    assert all(before - after >= 0.04 * FULL for before, after in itertools.pairwise(costs))


# State that follows from finished trials alone.


def sequence(study: optuna.Study) -> list[Params]:
    return [trial.params for trial in study.trials if trial.state == TrialState.COMPLETE]


@pytest.mark.parametrize("stop", [1, 4, 11])
def test_a_restart_goes_on_as_an_uninterrupted_search(stop: int) -> None:
    whole = adapted(sampler())
    study = optuna.create_study(direction="maximize", sampler=sampler())
    study.optimize(lambda trial: accuracy(suggest(trial)), n_trials=stop)
    study.sampler = sampler()
    study.optimize(lambda trial: accuracy(suggest(trial)), n_trials=2000)
    assert sequence(study) == sequence(whole)


def test_a_failed_trial_is_proposed_again() -> None:
    own = sampler()
    study = optuna.create_study(direction="maximize", sampler=own)
    generator = random.Random(0)

    def unsteady(trial: optuna.Trial) -> float:
        params = suggest(trial)
        if generator.random() < 0.3:
            raise OSError
        return accuracy(params)

    study.optimize(unsteady, n_trials=2000, catch=OSError)
    assert any(trial.state == TrialState.FAIL for trial in study.trials)
    assert sequence(study) == sequence(adapted(sampler()))


def test_a_pruned_proposal_is_not_accepted_and_not_proposed_again() -> None:
    def spoiled(params: Params) -> float:
        if params["width0"] < 64:
            raise optuna.TrialPruned
        return accuracy(params)

    own = sampler()
    study = adapted(own, spoiled)
    assert all(params["width0"] == 64 for params in path(own, study))
    assert len({tuple(trial.params.items()) for trial in study.trials}) == len(study.trials)


def test_trials_that_finish_out_of_order_in_several_workers_lead_to_the_same_networks() -> None:
    own = sampler()
    study = optuna.create_study(direction="maximize", sampler=own)
    generator = random.Random(0)
    under_way: list[tuple[optuna.Trial, Params]] = []
    while not own.is_exhausted(study):
        while len(under_way) < 4:
            trial = study.ask()
            under_way.append((trial, suggest(trial)))
        trial, params = under_way.pop(generator.randrange(4))
        study.tell(trial, accuracy(params))
    alone = sampler()
    assert path(own, study) == path(alone, adapted(alone))


def test_a_minimised_value_is_a_score_turned_around() -> None:
    own = sampler()
    study = optuna.create_study(direction="minimize", sampler=own)
    study.optimize(lambda trial: -accuracy(suggest(trial)), n_trials=2000)
    alone = sampler()
    assert path(own, study) == path(alone, adapted(alone))


# In a search of this project.


class Oracle(Evaluator):
    """Worth a network by its parameters."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.seen: list[Architecture] = []

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("top1",)

    def evaluate(self, arch: Architecture, wanted: Any, seed: int, report: Any = None) -> Metrics:
        self.seen.append(arch)
        return {"top1": 50 + 10 * math.log10(self.space.cost(arch)["params"])}


def searched(space: Space, strategy: NetAdaptStrategy, trials: int = 1000) -> tuple[Runner, Oracle]:
    judge = Judge(space, oracle := Oracle(space), ObjectiveConfig(maximize=["top1"]), None, 0, strategy.metrics)
    context = StrategyContext(space, ("maximize",), trials, seed=0, cost=judge.free)
    study = optuna.create_study(direction="maximize", sampler=strategy.sampler(context))
    runner = Runner(study, judge, trials)
    while (asked := runner.ask()) is not None:
        runner.run(asked)
    return runner, oracle


def test_the_search_ends_by_itself_with_the_last_network_as_its_winner() -> None:
    space = create("mobilenetv3", {"skeleton": "tiny", "dataset": "cifar"})  # has decisions that depend on depths
    runner, oracle = searched(space, NetAdaptStrategy(resource="macs", target=0.6, delta=0.05))
    first, *_ = found = best(runner.study, space, 100)
    widest = space.cost(oracle.seen[0])["macs"]
    assert dict(found[-1].architecture) == dict(oracle.seen[0])
    assert space.cost(first.architecture)["macs"] <= 0.6 * widest
    assert all(space.cost(entry.architecture)["macs"] > 0.6 * widest for entry in found[1:])
    assert first.metrics["macs"] == space.cost(first.architecture)["macs"]
    assert len(oracle.seen) == len({space.canonical(arch) for arch in oracle.seen})


def test_a_search_that_runs_out_of_trials_says_so_and_keeps_what_it_has() -> None:
    space = create("mobilenetv3", {"skeleton": "tiny", "dataset": "cifar"})
    runner, _ = searched(space, NetAdaptStrategy(resource="params", target=0.3, delta=0.02), trials=40)
    own = runner.study.sampler
    assert isinstance(own, NetAdaptSampler)
    assert "the trials ended before the target" in own.summary(runner.study)
    assert best(runner.study, space, 1)


def test_widths_that_a_residual_sum_ties_stay_equal() -> None:
    space, _ = open_preset("channels", "mobilenetv3-small")
    runner, oracle = searched(space, NetAdaptStrategy(resource="macs", target=0.8, delta=0.05))
    final = best(runner.study, space, 1)[0].architecture
    network: Any = space.build(final, space.task(10, 3, 32)).eval()
    for stage in network.stages:
        assert len({block.project.out_channels for block in stage}) == 1
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert {name for arch in oracle.seen for name in arch if arch[name] != oracle.seen[0][name]} >= {
        "stages.4.0.project.width",
        "stages.4.1.expand.width",
    }


def test_what_cannot_be_adapted_is_refused_by_name() -> None:
    words = {"kind": CategoricalDistribution(("conv", "skip"))}
    with pytest.raises(InputError, match=r"search\.strategy: netadapt .* the decision kind .* got the choice 'conv'"):
        NetAdaptSampler(words, lambda params: 1.0)
    space = create("mobilenetv3", {"skeleton": "tiny", "dataset": "cifar"})
    context = StrategyContext(space, ("maximize",), 10, seed=0, cost=lambda arch: {})
    with pytest.raises(InputError, match="needs latency_ms of every network"):
        NetAdaptStrategy().sampler(context)
    full = StrategyContext(space, ("maximize",), 10, 0, feasible=lambda params: False, cost=lambda a: {"macs": 1.0})
    with pytest.raises(InputError, match="the widest network, where netadapt starts, breaks one"):
        NetAdaptStrategy(resource="macs").sampler(full)
