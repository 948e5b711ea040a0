"""REINFORCE with a moving-average baseline (Williams 1992)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from optuna.samplers import BaseSampler
from pydantic import Field
from torch import Tensor

from search.strategies.policy_gradient import ControllerName, Learner, Learning, PolicyGradientSampler
from search.strategies.sampler import Finished
from search.strategies.strategy import StrategyBase, StrategyContext, strategies


def reinforce_loss(log_probs: Tensor, entropies: Tensor, advantages: Tensor, entropy: float = 0.0) -> Tensor:
    """Return -mean(A log pi) - entropy * mean(H) of a batch, all (n,)."""
    return -(advantages * log_probs).mean() - entropy * entropies.mean()


class ReinforceSampler(PolicyGradientSampler):
    """Draws from a controller that one gradient step per batch makes likelier to draw what scored above the baseline.

    Args:
        learning_rate, optimizer, batch, decay, entropy, standardize: see `Learning`.
        others: as for `PolicyGradientSampler`.
    """

    def __init__(
        self,
        *args: Any,
        learning_rate: float = 0.5,
        optimizer: Literal["sgd", "adam"] = "sgd",
        batch: int = 10,
        decay: float = 0.95,
        entropy: float = 0.0,
        standardize: bool = True,
        controller: ControllerName = "independent",
        **others: Any,
    ) -> None:
        learning = Learning(learning_rate, optimizer, batch, decay, entropy, standardize)
        super().__init__(*args, learning=learning, controller=controller, **others)

    def update(self, learner: Learner, trials: Sequence[Finished]) -> None:
        """Take one step along the policy gradient."""
        advantages = learner.advantages(trials)
        log_probs, entropies = learner.controller([trial.params for trial in trials])
        learner.optimizer.zero_grad()
        reinforce_loss(log_probs, entropies, advantages, self.learning.entropy).backward()
        learner.optimizer.step()


@strategies.register("reinforce")
class ReinforceStrategy(StrategyBase):
    """REINFORCE: plain gradient ascent on independent softmaxes, or on the LSTM controller."""

    name: Literal["reinforce"] = "reinforce"
    controller: ControllerName = Field("independent", description="one softmax per decision, or the NASNet LSTM")
    hidden: int = Field(100, ge=1, description="units of the LSTM")
    learning_rate: float = Field(0.5, gt=0, description="step along the gradient")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="sgd: plain gradient ascent")
    batch: int = Field(10, ge=1, description="architectures per update")
    decay: float = Field(0.95, ge=0, lt=1, description="of the baseline, a moving average of the scores")
    entropy: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    standardize: bool = Field(
        True, description="divide advantages by the scores' deviation so far; off: the learning rate is per score"
    )

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler."""
        rows = None if context.candidates is None else [dict(arch) for arch in context.candidates]
        return ReinforceSampler(
            context.distributions,
            seed=context.seed,
            feasible=context.feasible,
            candidates=rows,
            space=context.space,
            **self.model_dump(exclude={"name"}),
        )
