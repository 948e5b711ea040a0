"""How the policies of N2N learn: REINFORCE, first on removals, then on shrinkages of the best shortened network."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from search.strategies.n2n_policies import (
    Place,
    RemovalPolicy,
    ShrinkagePolicy,
    draw_removals,
    draw_shrinkages,
    removal_log_probs,
    shrinkage_log_probs,
)
from spaces.architecture import Architecture
from spaces.n2n import N2NSpace

Rollout = Mapping[str, Any]
LogProbs = Callable[[Sequence[Rollout]], Tensor]


class Learner:
    """REINFORCE with a moving baseline: ∇J ≈ 1/m Σ (R - b) ∇ log π, b ← 0.9 b + 0.1 R̄, which begins at the first R̄.

    Every rollout has its own advantage. (The published code's baseline is half of what it should be in epoch 1, and it
    credits the mean reward of an epoch to all of its rollouts.)
    """

    def __init__(self, policy: nn.Module, log_probs: LogProbs, learning_rate: float) -> None:
        self.policy, self.log_probs = policy, log_probs
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
        self.baseline: float | None = None

    def learn(self, rollouts: Sequence[Rollout], rewards: Sequence[float]) -> None:
        """Take one step, on the rollouts of an epoch."""
        values = torch.tensor(rewards)
        mean = float(values.mean())
        baseline = mean if self.baseline is None else self.baseline
        loss = -((values - baseline) * self.log_probs(rollouts)).mean()
        self.optimizer.zero_grad()
        if loss.requires_grad:  # else nothing is decided
            loss.backward()
            self.optimizer.step()
        self.baseline = mean if self.baseline is None else 0.9 * self.baseline + 0.1 * mean


class Stage:
    """One of the two stages: what its policy draws, and what it makes of it.

    `base` is what networks are made from: the whole model, then the best shortened one. `epoch` counts the updates,
    `stale` those in a row that met no new network.
    """

    def __init__(self, base: Architecture, learner: Learner, draw: Callable[[random.Random], Rollout]) -> None:
        self.base, self.learner, self.draw = base, learner, draw
        self.epoch, self.stale = 0, 0
        self.pending: list[tuple[Rollout, float, bool]] = []

    def take(self, rollout: Rollout, reward: float, new: bool, count: int) -> None:
        """Note a rollout, and learn once there are `count`."""
        self.pending.append((rollout, reward, new))
        if len(self.pending) == count:
            self.learner.learn([each for each, _, _ in self.pending], [reward for _, reward, _ in self.pending])
            self.stale = 0 if any(new for _, _, new in self.pending) else self.stale + 1
            self.epoch, self.pending = self.epoch + 1, []


@dataclass
class Policies:
    """Both policies of a search."""

    removal: RemovalPolicy
    shrinkage: ShrinkagePolicy
    factors: Sequence[float]


@dataclass
class Progress:
    """How far a search is: its stages so far, and the rewards of the networks it has met."""

    policies: Policies
    stages: list[Stage]
    met: dict[Architecture, tuple[bool, float]] = field(default_factory=dict)
    """For each network, whether it breaks no limit, and its reward; larger is better."""

    @property
    def stage(self) -> Stage:
        """The stage that it is in."""
        return self.stages[-1]


def removal_stage(space: N2NSpace, policies: Policies, learning_rate: float) -> Stage:
    """Return the stage that leaves layers out of the whole model."""
    states = torch.tensor([step.link.state for step in space.steps])
    places = [
        Place(step.keep, number, {False: (0,), True: (1,)})
        for number, step in enumerate(space.steps)
        if step.keep is not None
    ]
    policy = policies.removal
    learner = Learner(policy, lambda rollouts: removal_log_probs(policy, states, places, rollouts), learning_rate)
    return Stage(space.widest(), learner, lambda generator: draw_removals(policy, states, places, generator))


def shrinkage_stage(space: N2NSpace, base: Architecture, policies: Policies, learning_rate: float) -> Stage:
    """Return the stage that makes the layers narrower that `base` has left."""
    gone = space.removals.dropped(base)
    steps = [step for step in space.steps if not any(f"{step.link.name}.".startswith(f"{name}.") for name in gone)]
    states = torch.tensor([step.link.state for step in steps])
    owners = {name: number for number, step in enumerate(steps) for name in step.widths}
    taken = [
        decision.name for decision in space.decisions if decision.name in base and not _is_keep(base, decision.name)
    ]
    places = [Place(name, owners.get(name, 0), _actions(space, name, policies.factors)) for name in taken]
    policy = policies.shrinkage
    learner = Learner(policy, lambda rollouts: shrinkage_log_probs(policy, states, places, rollouts), learning_rate)
    return Stage(base, learner, lambda generator: draw_shrinkages(policy, states, places, generator))


def _actions(space: N2NSpace, name: str, factors: Sequence[float]) -> dict[object, tuple[int, ...]]:
    """Return for every choice of a width the factors that mean it: a small layer's floor may be meant by several."""
    groups: dict[object, tuple[int, ...]] = {}
    for action, factor in enumerate(factors):
        choice = space.shrunk(name, factor)
        groups[choice] = (*groups.get(choice, ()), action)
    return groups


def kept_layers(arch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an architecture says of layers being there, without widths."""
    return {name: choice for name, choice in arch.items() if _is_keep(arch, name)}


def _is_keep(arch: Mapping[str, Any], name: str) -> bool:
    return isinstance(arch[name], bool)
