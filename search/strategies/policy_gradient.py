"""What REINFORCE and PPO share: a controller that learns from the finished trials, batch by batch."""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compress.core.environment import one_thread
from search.strategies.controller import Controller, IndependentSoftmaxes, LSTMController
from search.strategies.replay import Replay
from search.strategies.sampler import Choices, Finished, Params, SpaceSampler

CONTROLLERS = {"lstm": LSTMController, "independent": IndependentSoftmaxes}
ControllerName = Literal["lstm", "independent"]


@dataclass
class Learning:
    """How a controller learns.

    Attributes:
        learning_rate: of the optimizer.
        optimizer: "sgd" is plain gradient ascent.
        batch: architectures per update.
        decay: of the baseline, an exponential moving average of the scores that starts at the first.
        entropy: weight of the entropy bonus.
        standardize: whether advantages are divided by the standard deviation of all scores so far.
    """

    learning_rate: float
    optimizer: Literal["sgd", "adam"]
    batch: int
    decay: float
    entropy: float
    standardize: bool


class Baseline:
    """Turns scores into advantages, one after the other."""

    def __init__(self, decay: float, standardize: bool) -> None:
        self.decay, self.standardize = decay, standardize
        self.value: float | None = None
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def advantage(self, score: float) -> float:
        """Return how far `score` is above the baseline before it; the baseline then takes it in."""
        if self.value is None:
            self.value = score
        ahead = score - self.value
        self.value = self.decay * self.value + (1 - self.decay) * score
        self._count += 1
        delta = score - self._mean
        self._mean += delta / self._count
        self._squares += delta * (score - self._mean)
        return ahead

    @property
    def scale(self) -> float:
        """What advantages are divided by."""
        deviation = math.sqrt(self._squares / self._count) if self._count else 0.0
        return deviation if self.standardize and deviation > 0 else 1.0


class Learner:
    """A controller with what it remembers of the trials before."""

    def __init__(self, controller: Controller, learning: Learning) -> None:
        self.controller, self.learning = controller, learning
        self.baseline = Baseline(learning.decay, learning.standardize)
        kind = torch.optim.SGD if learning.optimizer == "sgd" else torch.optim.Adam
        self.optimizer = kind(controller.parameters(), lr=learning.learning_rate)
        self.pending: list[Finished] = []

    def advantages(self, trials: Sequence[Finished]) -> Tensor:
        """Return the advantages (n,) of a batch; the baseline moves on."""
        ahead = [self.baseline.advantage(trial.score) for trial in trials]
        return torch.tensor(ahead) / self.baseline.scale


class PolicyGradientSampler(SpaceSampler):
    """Draws architectures from a controller that is trained on the finished trials.

    The controller's parameters are a function of the finished trials in the order in which they finished: every
    `batch` of them make one update. Trials under way make no difference, so with several workers some trials of a
    batch were drawn before the last update; they are treated as if they had not been.

    Args:
        learning: see `Learning`.
        controller: "lstm", or "independent" softmaxes.
        hidden: units of the LSTM.
        others: as for `SpaceSampler`.
    """

    def __init__(
        self,
        *args: Any,
        learning: Learning,
        controller: ControllerName = "lstm",
        hidden: int = 100,
        **others: Any,
    ) -> None:
        super().__init__(*args, **others)
        self.learning, self.controller, self.hidden = learning, controller, hidden
        self._replay = Replay(self._begin, self._take)

    @abstractmethod
    def update(self, learner: Learner, trials: Sequence[Finished]) -> None:
        """Let the learner's controller learn from one batch."""

    def learner(self, finished: Sequence[Finished], choices: Choices) -> Learner:
        """Return the controller as it is after these trials."""
        with one_thread():
            return self._replay.after(finished, choices)

    def propose(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, generator: random.Random
    ) -> Params:
        """Draw from the controller."""
        tree = None if self.space is None else self.space.tree
        return self.learner(finished, choices).controller.draw(generator, tree)

    def _begin(self, choices: Choices) -> Learner:
        controller = CONTROLLERS[self.controller](choices, hidden=self.hidden, seed=self.seed)
        return Learner(controller, self.learning)

    def _take(self, learner: Learner, trial: Finished) -> None:
        if math.isfinite(trial.score):
            learner.pending.append(trial)
        if len(learner.pending) == self.learning.batch:
            self.update(learner, learner.pending)
            learner.controller.freeze()
            learner.pending = []
