"""Controllers: the probabilities that torch computes are those that numpy draws from, and gradients are exact."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from search.strategies.controller import Controller, IndependentSoftmaxes, LSTMController
from search.strategies.reinforce import reinforce_loss
from spaces.registry import create

BANDIT = {"a": ("x", "y"), "b": (1, 2, 3)}
ARMS = [{"a": a, "b": b} for a, b in itertools.product(*BANDIT.values())]
DRAWS = 8_000
WORTH = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0])


def uneven(controller: Controller) -> Controller:
    """Give a controller parameters that favour some choices."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.7)
    controller.freeze()
    return controller


def bandits() -> list[Any]:
    makes = [lambda: IndependentSoftmaxes(BANDIT), lambda: LSTMController(BANDIT, hidden=6)]
    return [pytest.param(make, id=name) for make, name in zip(makes, ["independent", "lstm"], strict=True)]


def gradients(controller: Controller, loss: torch.Tensor) -> torch.Tensor:
    parameters = list(controller.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("make", bandits())
def test_probabilities_of_all_assignments_add_up_to_one(make: Any) -> None:
    log_probs, _ = uneven(make())(ARMS)
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("make", bandits())
def test_draws_have_the_probabilities_that_updates_work_with(make: Any) -> None:
    controller, generator = uneven(make()), random.Random(0)
    drawn = Counter(tuple(controller.draw(generator).values()) for _ in range(DRAWS))
    for arm, log_prob in zip(ARMS, controller(ARMS)[0].tolist(), strict=True):
        expected = math.exp(log_prob)
        assert drawn[tuple(arm.values())] / DRAWS == pytest.approx(expected, abs=4 * math.sqrt(expected / DRAWS))


@pytest.mark.parametrize("make", bandits())
def test_entropy_averages_to_that_of_the_whole_distribution(make: Any) -> None:
    log_probs, entropies = uneven(make())(ARMS)
    whole = -(log_probs.exp() * log_probs).sum()
    assert (log_probs.exp() * entropies).sum().item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("make", bandits())
def test_gradient_is_the_enumerated_sum_on_a_bandit(make: Any) -> None:
    controller = uneven(make())
    log_probs, entropies = controller(ARMS)
    exact = gradients(controller, (log_probs.exp() * WORTH).sum())  # of the expected worth
    weights = len(ARMS) * log_probs.exp().detach()  # the mean over arms becomes the sum of pi A grad log pi
    log_probs, entropies = controller(ARMS)
    enumerated = -gradients(controller, reinforce_loss(log_probs, entropies, weights * WORTH))
    torch.testing.assert_close(enumerated, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", bandits())
def test_gradient_of_draws_approaches_the_enumerated_sum(make: Any) -> None:
    controller, generator = uneven(make()), random.Random(0)
    exact = gradients(controller, (controller(ARMS)[0].exp() * WORTH).sum())
    drawn = [controller.draw(generator) for _ in range(DRAWS)]
    worth = torch.stack([WORTH[ARMS.index(params)] for params in drawn])
    log_probs, entropies = controller(drawn)
    estimate = -gradients(controller, reinforce_loss(log_probs, entropies, worth))
    assert (estimate - exact).norm() < 0.05 * exact.norm() + 0.05


@pytest.mark.parametrize("make", bandits())
def test_without_advantage_only_entropy_has_a_gradient(make: Any) -> None:
    controller, nothing = uneven(make()), torch.zeros(len(ARMS))
    log_probs, entropies = controller(ARMS)
    assert gradients(controller, reinforce_loss(log_probs, entropies, nothing)).abs().max() == 0
    log_probs, entropies = controller(ARMS)
    both = gradients(controller, reinforce_loss(log_probs, entropies, nothing, entropy=0.1))
    alone = gradients(controller, -0.1 * controller(ARMS)[1].mean())
    torch.testing.assert_close(both, alone)
    assert alone.abs().max() > 0


def test_independent_softmaxes_start_uniform() -> None:
    log_probs, entropies = IndependentSoftmaxes(BANDIT)(ARMS)
    assert log_probs.exp().tolist() == pytest.approx([1 / 6] * 6)
    assert entropies.tolist() == pytest.approx([math.log(6)] * 6)


def test_lstm_controller_is_the_one_of_the_paper() -> None:
    space = create("nasnet", {})
    choices = {decision.name: decision.choices for decision in space.decisions}
    controller = LSTMController(choices, seed=4)
    assert len(controller.sizes) == 50
    assert controller.lstm.hidden_size == 100 and controller.lstm.num_layers == 1
    for parameter in controller.parameters():
        assert -0.1 <= parameter.min() and parameter.max() <= 0.1
    assert controller.embedding.weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    generator = random.Random(0)
    for _ in range(20):
        params = controller.draw(generator, space.tree)
        assert len(params) == 50
        assert space.check(params) == params
    torch.testing.assert_close(LSTMController(choices, seed=4)([params])[0], controller([params])[0])


def test_choices_before_change_the_probabilities_of_those_after() -> None:
    controller = uneven(LSTMController(BANDIT, hidden=6))
    by_first = controller(ARMS)[0].exp().reshape(2, 3)
    given_first = by_first / by_first.sum(1, keepdim=True)
    assert (given_first[0] - given_first[1]).abs().max() > 0.02


@pytest.mark.parametrize("kind", [IndependentSoftmaxes, LSTMController])
def test_decisions_that_are_not_taken_are_skipped_and_get_no_gradient(chain: Any, kind: Any) -> None:
    controller = uneven(kind(chain.choices))
    for seed in range(30):
        params = controller.draw(random.Random(seed), chain.space.tree)
        assert chain.space.check(params) == params
    log_probs, entropies = controller([{"depth": 1, "operation1": "conv", "width": 8}])
    (log_probs.sum() + entropies.sum()).backward()
    untaken = slice(controller.offsets[2], controller.offsets[4])  # operation2 and operation3
    head = controller.logits if kind is IndependentSoftmaxes else controller.softmaxes.weight
    assert head.grad[untaken].abs().max() == 0
    assert head.grad[controller.offsets[4] :].abs().max() > 0
    if kind is LSTMController:
        assert controller.embedding.weight.grad[untaken].abs().max() == 0


@pytest.mark.parametrize("kind", [IndependentSoftmaxes, LSTMController])
def test_conditional_probabilities_add_up_to_one_over_the_space(chain: Any, kind: Any) -> None:
    log_probs, _ = uneven(kind(chain.choices))([dict(arch) for arch in chain.space])
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_batches_of_different_lengths_are_as_one_by_one(chain: Any) -> None:
    controller = uneven(LSTMController(chain.choices, hidden=8))
    assignments = [trial.params for trial in chain.history(10)]
    together = controller(assignments)[0].tolist()
    assert together == pytest.approx([controller([params])[0].item() for params in assignments], rel=1e-5)
