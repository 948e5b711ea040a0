"""REINFORCE and PPO: batches, baseline, ratios, and learning on a small space."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch

from search.strategies import ppo
from search.strategies.controller import IndependentSoftmaxes
from search.strategies.policy_gradient import Baseline
from search.strategies.ppo import PPOSampler, PPOStrategy, ppo_loss
from search.strategies.reinforce import ReinforceSampler, ReinforceStrategy, reinforce_loss
from search.strategies.sampler import Finished


def test_baseline_starts_at_the_first_score_and_moves_by_a_twentieth() -> None:
    baseline = Baseline(decay=0.95, standardize=False)
    assert [baseline.advantage(score) for score in (90.0, 92.0, 88.0)] == pytest.approx([0.0, 2.0, -2.1])
    assert baseline.value == pytest.approx(0.95 * 90.1 + 0.05 * 88.0)
    assert baseline.scale == 1.0


def test_standardized_advantages_do_not_hang_on_the_unit_of_the_score() -> None:
    percent, fraction = Baseline(0.95, standardize=True), Baseline(0.95, standardize=True)
    scores = [random.Random(1).gauss(90, 2) for _ in range(20)]
    large = [percent.advantage(score) for score in scores]
    small = [fraction.advantage(score / 100) for score in scores]
    assert [value / percent.scale for value in large] == pytest.approx([value / fraction.scale for value in small])
    assert Baseline(0.95, standardize=True).scale == 1.0


def test_plain_gradient_ascent_follows_the_formula() -> None:
    choices = {"a": (0, 1, 2)}
    sampler = ReinforceSampler(batch=2, learning_rate=0.3, decay=0.5, standardize=False)
    trials = [Finished(0, {"a": 1}, 4.0), Finished(1, {"a": 2}, 10.0)]
    logits = sampler.learner(trials, choices).controller.logits.detach()
    # Advantages 0 and 6, both under uniform probabilities: step 0.3 * mean(A * (one-hot - 1/3)).
    assert logits.tolist() == pytest.approx([-0.3, -0.3, 0.6])


def test_updates_come_after_every_full_batch() -> None:
    choices = {"a": (0, 1)}
    sampler = ReinforceSampler(batch=3)
    trials = [Finished(number, {"a": number % 2}, float(number)) for number in range(7)]
    seen = [sampler.learner(trials[:count], choices).controller.logits.tolist() for count in range(8)]
    assert [one != other for one, other in itertools.pairwise(seen)] == [False, False, True, False, False, True, False]


def test_infinite_scores_are_passed_over() -> None:
    trials = [Finished(number, {"a": number % 2}, score) for number, score in enumerate([1.0, -math.inf, 2.0, 3.0])]
    learner = ReinforceSampler(batch=3).learner(trials, {"a": (0, 1)})
    assert torch.isfinite(learner.controller.logits).all() and not learner.pending


def test_ratio_is_one_on_the_first_pass_only(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios: list[torch.Tensor] = []

    def spy(log_probs: Any, old: Any, *others: Any) -> Any:
        ratios.append((log_probs - old).exp().detach())
        return ppo_loss(log_probs, old, *others)

    monkeypatch.setattr(ppo, "ppo_loss", spy)
    sampler = PPOSampler(batch=10, passes=3, learning_rate=0.01, space=chain.space)
    sampler.learner(chain.history(20), chain.choices)
    assert len(ratios) == 6
    for first in ratios[::3]:
        assert torch.equal(first, torch.ones(10))
    for later in ratios[1::3] + ratios[2::3]:
        assert (later - 1).abs().max() > 1e-3


def test_first_pass_has_the_gradient_of_reinforce() -> None:
    controller, advantages = IndependentSoftmaxes({"a": (0, 1, 2)}), torch.tensor([1.0, -2.0])
    log_probs, entropies = controller([{"a": 0}, {"a": 2}])
    (proximal,) = torch.autograd.grad(ppo_loss(log_probs, log_probs, entropies, advantages), [controller.logits])
    log_probs, entropies = controller([{"a": 0}, {"a": 2}])
    (plain,) = torch.autograd.grad(reinforce_loss(log_probs, entropies, advantages), [controller.logits])
    torch.testing.assert_close(proximal, plain)


def test_ratio_counts_no_further_than_the_clip() -> None:
    old = torch.zeros(4)
    log_probs = torch.tensor([1.3, 1.3, 0.6, 0.6]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = ppo_loss(log_probs, old, torch.zeros(4), advantages, clip=0.2)
    assert loss.item() == pytest.approx(-(1.2 - 1.3 + 0.6 - 0.8) / 4)
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([0.0, 1.3 / 4, -0.6 / 4, 0.0])


@pytest.mark.parametrize(
    "config",
    [
        ReinforceStrategy(),
        ReinforceStrategy(controller="lstm", optimizer="adam", learning_rate=0.01, hidden=20),
        PPOStrategy(hidden=20, learning_rate=0.01),
        PPOStrategy(controller="independent", learning_rate=0.1),
    ],
    ids=["reinforce", "reinforce with the LSTM", "ppo", "ppo without the LSTM"],
)
def test_draws_get_better_with_the_trials(chain: Any, config: Any) -> None:
    study = chain.search(chain.sampler(config), 200)
    scores = [trial.value for trial in study.trials]
    assert sum(scores[-40:]) / 40 > sum(scores[:40]) / 40 + 0.5


def test_choices_that_are_gone_from_the_space_teach_nothing() -> None:
    trials = [Finished(number, {"a": 9, "b": number % 2}, float(number)) for number in range(4)]
    learner = ReinforceSampler(batch=4).learner(trials, {"a": (0, 1), "b": (0, 1)})
    logits = learner.controller.logits.tolist()
    assert logits[:2] == [0.0, 0.0] and logits[2] < 0 < logits[3]
