"""N2N: rewards, policies that learn, invalid students that cost nothing, policies handed on to another teacher."""

from __future__ import annotations

import random
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from short_searches import Noise, runner_for, work

from compress.core.errors import InputError
from evaluators.candidates.evaluator import Metrics
from search.config import SearchConfig
from search.optuna_internals import trial_notes
from search.strategies import StrategyContext, strategies
from search.strategies.n2n import POLICIES, N2NSampler
from search.strategies.n2n_learning import Learner, Policies, removal_stage, shrinkage_stage
from search.strategies.n2n_policies import (
    Place,
    RemovalPolicy,
    ShrinkagePolicy,
    draw_removals,
    draw_shrinkages,
    removal_log_probs,
    shrinkage_log_probs,
)
from search.strategies.n2n_reward import Limits, penalised, reward, tolerance
from spaces.architecture import Architecture
from spaces.n2n import N2NSpace
from spaces.registry import create

GIVEN: dict[str, Any] = {"factors": [0.25, 0.5, 0.5, 0.75, 1.0]}


@cache
def students(**options: Any) -> N2NSpace:
    model = {"source": "builtin", "name": "cifar_resnet20"}
    space = create("n2n", {**GIVEN, "model": model, **options})
    assert isinstance(space, N2NSpace)
    return space


def sampler(**options: Any) -> N2NSampler:
    return N2NSampler(students(), lambda: 100.0, **{"rollouts": 3, "removal_epochs": 2, "hidden": 8, **options})


def worth(params: dict[str, Any]) -> float:
    """The share of layers that are there, in percent: larger students are worth more."""
    return 100 * sum(choice is not False for choice in params.values()) / len(students().widest())


def search(found: N2NSampler, trials: int, study: optuna.Study | None = None) -> optuna.Study:
    study = study or optuna.create_study(direction="maximize")
    study.sampler = found
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, worth(dict(students().suggest(trial))))
    return study


# Rewards.


def test_rewards_are_those_of_the_paper() -> None:
    for compression, expected in ((0.5, 0.75), (0.8, 0.96), (0.9, 0.99), (0.95, 0.9975)):
        assert reward(round(1e4 * (1 - compression)), 90, 10_000, 90) == pytest.approx(expected, abs=1e-4)
    assert reward(2_000, 45, 10_000, 90) == pytest.approx(0.48)
    assert reward(10_000, 90, 10_000, 90) == 0


def test_a_broken_limit_is_punished_more_from_epoch_to_epoch() -> None:
    assert penalised(0.9, 0) == 0.9
    assert tolerance(5) == pytest.approx((2 / 3) ** 4) == pytest.approx(0.1975, abs=1e-4)
    assert penalised(0.9, 5) == pytest.approx(-0.8025 + 0.1975 * 0.9, abs=1e-4)
    assert [penalised(0.9, epoch) for epoch in (15, 16, 40)] == [-1, -1, -1]
    limits = Limits(max_params=100, min_accuracy=50)
    assert [limits.broken(*each) for each in ((100, 50), (101, 99), (10, 49.9))] == [False, True, True]


# Policies.


def test_every_parameter_of_both_policies_gets_a_gradient() -> None:
    space = students()
    policies = Policies(RemovalPolicy(30), ShrinkagePolicy(30, 5), space.config.factors)
    stages = [removal_stage(space, policies, 0.003), shrinkage_stage(space, space.widest(), policies, 0.1)]
    for stage, policy in zip(stages, (policies.removal, policies.shrinkage), strict=True):
        rollouts = [stage.draw(random.Random(seed)) for seed in range(3)]
        before = {name: each.detach().clone() for name, each in policy.named_parameters()}
        stage.learner.learn(rollouts, [0.1, 0.5, 0.9])
        for name, parameter in policy.named_parameters():
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("shrinks", [False, True], ids=["removal", "shrinkage"])
def test_policies_learn_a_pattern_to_more_than_95_percent(shrinks: bool) -> None:
    generator, states = random.Random(2), torch.randn(8, 7, generator=torch.Generator().manual_seed(2))
    pattern = [True] * 4 + [False] * 4
    places = [Place(str(number), number, {False: (0,), True: (1,)}) for number in range(8)]
    torch.manual_seed(2)
    policy: Any = ShrinkagePolicy(30, 2) if shrinks else RemovalPolicy(30)
    log_probs: Any = shrinkage_log_probs if shrinks else removal_log_probs
    draw: Any = draw_shrinkages if shrinks else draw_removals
    learner = Learner(policy, lambda rollouts: log_probs(policy, states, places, rollouts), 0.003)
    means, smooth = [], []
    for _ in range(120):
        rollouts = [draw(policy, states, places, generator) for _ in range(10)]
        rewards = [sum(each[str(n)] is bit for n, bit in enumerate(pattern)) / 8 for each in rollouts]
        learner.learn(rollouts, rewards)
        means.append(sum(rewards) / 10)
        smooth.append(learner.baseline or 0.0)
    assert sum(means[-20:]) / 20 > 0.95
    every = smooth[9::10]
    assert all(later > before - 0.01 for before, later in pairwise(every)), every


def test_factors_that_mean_the_same_width_share_its_probability() -> None:
    policy, states = ShrinkagePolicy(4, 3), torch.rand(1, 7)
    place = Place("width", 0, {8: (0, 1), 16: (2,)})
    log_probs, _ = policy(states[0], torch.zeros(1, 3), policy.start(1))
    found = shrinkage_log_probs(policy, states, [place], [{"width": 8}, {"width": 16}]).exp()
    torch.testing.assert_close(found, torch.stack([log_probs[0, :2].exp().sum(), log_probs[0, 2].exp()]))


def test_the_baseline_begins_at_the_first_mean_and_then_moves() -> None:
    policy = RemovalPolicy(4)
    places = [Place("bit", 0, {False: (0,), True: (1,)})]
    learner = Learner(policy, lambda rollouts: removal_log_probs(policy, torch.rand(1, 7), places, rollouts), 0.01)
    for rewards, expected in (([0.2, 0.4], 0.3), ([1.0, 1.0], 0.37)):
        learner.learn([{"bit": True}, {"bit": False}], rewards)
        assert learner.baseline == pytest.approx(expected)


# The search.


def test_the_first_stage_removes_and_the_second_shrinks_what_is_left() -> None:
    found = sampler()
    study = search(found, 24)
    space, stages = students(), found.progress(study).stages
    assert len(stages) == 2 and stages[0].epoch == 2
    base = stages[1].base
    first = [space.check(trial.params, drop_untaken=True) for trial in study.trials[:4]]
    assert all(space.widest()[name] == choice for arch in first for name, choice in arch.items() if "width" in name)
    last = space.check(study.trials[-1].params, drop_untaken=True)
    assert {name: last[name] for name in last if "keep" in name} == {
        name: base[name] for name in base if "keep" in name
    }
    assert space.cost(last)["params"] < space.cost(base)["params"] < found.base_params


def test_a_search_taken_up_by_another_process_goes_on_as_it_would_have() -> None:
    whole = search(sampler(), 14)
    part = search(sampler(), 6)
    again = search(sampler(), 8, part)
    assert [trial.params for trial in again.trials] == [trial.params for trial in whole.trials]


def test_invalid_students_are_worth_minus_one_and_never_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sampler()
    whole = {name: True for name in students().widest() if name.endswith(".keep")}
    study = search(found, 2)
    draws = iter([whole, whole])
    stage = found.progress(study).stage
    usual = stage.draw
    monkeypatch.setattr(stage, "draw", lambda generator: next(draws, None) or usual(generator))
    study = search(found, 1, study)
    assert trial_notes(study.trials[2])["n2n:invalid"] == [whole, whole]
    assert study.trials[2].state == TrialState.COMPLETE
    progress = found.progress(study)  # two rollouts, an invalid one; another invalid one, and the third
    assert progress.stage.epoch == 1 and progress.stage.pending[0][1] == -1


def test_a_student_that_is_met_twice_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Architecture] = []
    usual = Noise.evaluate

    def evaluate(self: Noise, arch: Architecture, *others: Any) -> Metrics:
        asked.append(arch)
        return usual(self, arch, *others)

    monkeypatch.setattr(Noise, "evaluate", evaluate)
    runner = runner_for("n2n", students(), trials=6)
    small = min(
        (students().sample(random.Random(seed)) for seed in range(50)), key=lambda arch: sum(map(bool, arch.values()))
    )
    for _ in range(3):
        runner.study.enqueue_trial(dict(small))
    work(runner, workers=1)
    known = [trial for trial in runner.study.trials if "same_as" in trial.user_attrs["result"]]
    assert len(known) == 2 and len(asked) == len(set(asked)) == 4


def test_whether_a_student_is_valid_takes_less_than_a_millisecond() -> None:
    found, widest = sampler(), students().widest()
    found.is_valid(widest, widest, 0)
    seconds = []
    for seed in range(50):
        arch = students().sample(random.Random(seed))
        start = time.process_time()
        found.is_valid(arch, arch, 0)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1e-3
    assert not found.is_valid(widest, widest, 0)
    with pytest.raises(InputError, match=r"layer1.1.conv2.width: space n2n has no such decision"):
        students().check({**widest, "layer1.1.conv2.width": 8})  # the sum ties it to its stage


def test_students_over_the_limit_are_tried_at_first_and_not_at_last() -> None:
    found = sampler(limits=Limits(max_params=1))
    arch = students().complete({"layer1.0.conv1.keep": False}, lambda decision: decision.choices[-1])
    assert [found.is_valid(arch, students().widest(), epoch) for epoch in (0, 14, 15)] == [True, True, False]


def test_the_winner_is_the_best_reward_that_keeps_the_limits() -> None:
    study = search(sampler(), 12)
    free, bound = sampler(), sampler(limits=Limits(min_accuracy=60.0))
    space = students()

    def value(trial: optuna.trial.FrozenTrial) -> float:
        size = space.cost(space.check(trial.params, drop_untaken=True))["params"]
        return reward(size, trial.values[0], free.base_params, 100.0)

    assert value(free.winners(study)[0]) == max(map(value, study.trials))
    kept = [trial for trial in study.trials if trial.values[0] >= 60.0]
    assert kept and value(bound.winners(study)[0]) == max(map(value, kept))
    assert "fewer parameters than the given model" in free.summary(study)


# Policies of another run.


def test_policies_are_handed_on_to_another_teacher(tmp_path: Path) -> None:
    found = sampler()
    study = search(found, 24)
    found.leave(study, tmp_path / "run")
    learnt = found.progress(study).policies
    other = create("n2n", {**GIVEN, "model": {"source": "builtin", "name": "cifar_resnet32"}})
    assert isinstance(other, N2NSpace)
    taken = N2NSampler(other, lambda: 100.0, hidden=8, policies=tmp_path / "run" / POLICIES)
    new = optuna.create_study(direction="maximize", sampler=taken)
    started = taken.progress(new).policies
    for mine, theirs in ((started.removal, learnt.removal), (started.shrinkage, learnt.shrinkage)):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    assert not torch.equal(started.removal.out.weight, sampler()._policies().removal.out.weight)
    assert other.suggest(new.ask())


@pytest.mark.parametrize(
    ("options", "space", "sentence"),
    [
        (
            {},
            {"factors": [0.5, 1.0]},
            r"policy: the policies of .* choose between the factors \[0.25, .*; got \[0.5, 1.0\]",
        ),
        ({"hidden": 9}, {}, r"policy: the removal policy of .* is of another size than `hidden` says here"),
    ],
)
def test_policies_that_do_not_fit_are_refused(
    options: dict[str, Any], space: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    found = sampler()
    found.leave(search(found, 3), tmp_path)
    with pytest.raises(InputError, match=sentence):
        N2NSampler(
            create("n2n", {**GIVEN, **space}),  # type: ignore[arg-type]
            lambda: 100.0, policies=tmp_path / POLICIES, **{"hidden": 8, **options},
        )  # fmt: skip


def test_what_it_cannot_serve_is_one_sentence(tmp_path: Path) -> None:
    config = strategies.get("n2n")
    given: dict[str, Any] = {"trials": 4, "seed": 0}
    with pytest.raises(InputError, match=r"policy: .* holds no policies.safetensors; name the run of a fin"):
        config(policy=str(tmp_path), accuracy=90).sampler(StrategyContext(students(), ("maximize",), **given))
    with pytest.raises(InputError, match=r"removes and shrinks layers of a given model; got space nats_size"):
        config().sampler(StrategyContext(create("nats_size"), ("maximize",), **given))
    with pytest.raises(InputError, match=r"accuracy: missing; the evaluator knows no given model"):
        config().sampler(StrategyContext(students(), ("maximize",), **given))
    with pytest.raises(InputError, match="needs one metric to maximize"):
        config(accuracy=90).sampler(StrategyContext(students(), ("minimize",), **given))


def test_an_objective_to_minimize_is_refused_when_the_recipe_is_read() -> None:
    section = {"space": {"name": "n2n", "options": GIVEN}, "strategy": {"name": "n2n"}, "evaluator": {"kind": "train"}}
    with pytest.raises(ValueError, match="needs one metric to maximize; got objective loss"):
        SearchConfig.model_validate({**section, "objective": {"maximize": [], "minimize": ["loss"]}})
