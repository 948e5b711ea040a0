"""PPO with the LSTM controller of the NASNet paper (Zoph et al. 2018; clipping after Schulman et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from optuna.samplers import BaseSampler
from pydantic import Field
from torch import Tensor

from search.strategies.policy_gradient import ControllerName, Learner, Learning, PolicyGradientSampler
from search.strategies.sampler import Choices, Finished
from search.strategies.strategy import StrategyBase, StrategyContext, strategies

ENTROPY = 0.15


def ppo_loss(
    log_probs: Tensor, old: Tensor, entropies: Tensor, advantages: Tensor, clip: float = 0.2, entropy: float = 0.0
) -> Tensor:
    """Return -mean(min(r A, clip(r, 1 - c, 1 + c) A)) - entropy * mean(H), with r = pi / pi_old; all (n,)."""
    ratio = (log_probs - old.detach()).exp()
    least = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -least.mean() - entropy * entropies.mean()


class PPOSampler(PolicyGradientSampler):
    """Draws from a controller that is trained on each batch for several passes, without moving far from its start.

    Args:
        learning_rate, batch, decay, standardize: see `Learning`.
        entropy: weight of the entropy bonus; None: `ENTROPY` divided by the number of decisions. The entropy is a sum
            over decisions, so that a fixed weight would drown what the scores of a large space say: on NASNet's 50
            decisions, 0.03 kept the controller from learning.
        clip: how far a probability ratio counts.
        passes: gradient steps per batch.
        others: as for `PolicyGradientSampler`.
    """

    def __init__(
        self,
        *args: Any,
        learning_rate: float = 2e-3,
        batch: int = 10,
        decay: float = 0.95,
        entropy: float | None = None,
        clip: float = 0.2,
        passes: int = 5,
        standardize: bool = True,
        **others: Any,
    ) -> None:
        learning = Learning(learning_rate, "adam", batch, decay, entropy or 0.0, standardize)
        super().__init__(*args, learning=learning, **others)
        self.clip, self.passes, self.entropy = clip, passes, entropy

    def _begin(self, choices: Choices) -> Learner:
        learner = super()._begin(choices)
        if self.entropy is None:
            learner.learning = replace(self.learning, entropy=ENTROPY / len(choices))
        return learner

    def update(self, learner: Learner, trials: Sequence[Finished]) -> None:
        """Take `passes` steps on one batch; the first has a ratio of 1."""
        assignments = [trial.params for trial in trials]
        advantages = learner.advantages(trials)
        old: Tensor | None = None
        for _ in range(self.passes):
            log_probs, entropies = learner.controller(assignments)
            old = log_probs.detach() if old is None else old
            learner.optimizer.zero_grad()
            ppo_loss(log_probs, old, entropies, advantages, self.clip, learner.learning.entropy).backward()
            learner.optimizer.step()


@strategies.register("ppo")
class PPOStrategy(StrategyBase):
    """PPO with the NASNet paper's LSTM controller. The paper: learning rate 3.5e-4, batches of 20, entropy 1e-5."""

    name: Literal["ppo"] = "ppo"
    controller: ControllerName = Field("lstm", description="the NASNet paper's LSTM, or one softmax per decision")
    hidden: int = Field(100, ge=1, description="units of the LSTM")
    learning_rate: float = Field(2e-3, gt=0, description="of Adam")
    batch: int = Field(10, ge=1, description="architectures per update")
    passes: int = Field(5, ge=1, description="gradient steps per batch")
    clip: float = Field(0.2, gt=0, description="how far the ratio of probabilities counts (epsilon)")
    decay: float = Field(0.95, ge=0, lt=1, description="of the baseline, a moving average of the scores")
    entropy: float | None = Field(
        None, ge=0, description=f"weight of the entropy bonus; null: {ENTROPY} divided by the number of decisions"
    )
    standardize: bool = Field(True, description="divide advantages by the scores' deviation so far")

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler."""
        rows = None if context.candidates is None else [dict(arch) for arch in context.candidates]
        return PPOSampler(
            context.distributions,
            seed=context.seed,
            feasible=context.feasible,
            candidates=rows,
            space=context.space,
            **self.model_dump(exclude={"name"}),
        )
