"""Policies over the decisions of a space, for REINFORCE and PPO.

`LSTMController` is that of Zoph et al., "Learning Transferable Architectures for Scalable Image Recognition", appendix
A: one layer of 100 units, one softmax per decision, each step's input an embedding of the decision before; everything
starts uniform in [-0.1, 0.1]. `IndependentSoftmaxes` has one vector of logits per decision and no memory.

Torch computes probabilities for updates; single architectures are drawn in numpy, since a step of a small LSTM costs
torch mostly overhead.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.strategies.sampler import Choices, Params
from spaces.tree import State, Tree

Array = NDArray[np.float32]


class Controller(nn.Module, ABC):
    """A distribution over assignments, one decision after the other.

    Logits of all decisions lie in one vector, those of decision d from `offsets[d]`; a decision never has an entry
    beyond its own choices.
    """

    _foreign: Tensor
    """Bool (decisions, total): which entries belong to other decisions."""

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self.choices = dict(choices)
        self.sizes = [len(given) for given in choices.values()]
        self.offsets = [sum(self.sizes[:index]) for index in range(len(self.sizes))]
        self.total = sum(self.sizes)
        self._codes = {name: {choice: code for code, choice in enumerate(given)} for name, given in choices.items()}
        owners = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        self.register_buffer("_foreign", owners[None] != torch.arange(len(self.sizes))[:, None])

    def forward(self, assignments: Sequence[Params]) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy of n assignments, each (n,): sums over the decisions that were taken.

        The entropy is that of the softmaxes met on the way to the assignment. A decision that is missing adds nothing.
        """
        taken, places, real = self._sequences(assignments)
        logits = self._logits(places, real).masked_fill(self._foreign[taken], -math.inf)
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(-1, places[..., None])[..., 0]
        entropy = -(log_probs.exp() * log_probs.masked_fill(self._foreign[taken], 0.0)).sum(-1)
        return torch.where(real, chosen, 0.0).sum(-1), torch.where(real, entropy, 0.0).sum(-1)

    def draw(self, generator: random.Random, tree: Tree | None = None) -> Params:
        """Draw an assignment; with the space's tree, of the decisions that are taken."""
        self._restart()
        params: Params = {}
        state: State = ()
        for index, (name, given) in enumerate(self.choices.items()):
            code = -1
            if tree is None or tree.active(index, state):
                code = _draw(self._step(index), generator)
                self._follow(self.offsets[index] + code)
                params[name] = given[code]
            if tree is not None:
                state = tree.following(index, state, code)
        return params

    def _sequences(self, assignments: Sequence[Params]) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for n assignments and the steps of the longest: decision, place in the logits, and whether real."""
        rows = [
            [
                (index, self.offsets[index] + self._codes[name][params[name]])
                for index, name in enumerate(self.choices)
                if name in params and params[name] in self._codes[name]
            ]
            for params in assignments
        ]
        longest = max(map(len, rows))
        padded = torch.tensor([row + [(0, 0)] * (longest - len(row)) for row in rows]).reshape(len(rows), longest, 2)
        lengths = torch.tensor([len(row) for row in rows])
        return padded[..., 0], padded[..., 1], torch.arange(longest)[None] < lengths[:, None]

    @abstractmethod
    def _logits(self, places: Tensor, real: Tensor) -> Tensor:
        """Return all logits (n, steps, total) before each step, given the steps (n, steps)."""

    @abstractmethod
    def freeze(self) -> None:
        """Copy the parameters for drawing, after they have changed."""

    def _restart(self) -> None:
        """Begin a new assignment."""

    @abstractmethod
    def _step(self, index: int) -> Array:
        """Return the logits of decision `index`."""

    def _follow(self, place: int) -> None:
        """Take note of a choice."""


class IndependentSoftmaxes(Controller):
    """One softmax per decision that knows nothing of the others; starts uniform."""

    def __init__(self, choices: Choices, **_: Any) -> None:
        super().__init__(choices)
        self.logits = nn.Parameter(torch.zeros(self.total))
        self.freeze()

    def freeze(self) -> None:
        """Copy the logits for drawing."""
        self._values: Array = self.logits.detach().numpy().copy()

    def _logits(self, places: Tensor, real: Tensor) -> Tensor:
        return self.logits.expand(*places.shape, self.total)

    def _step(self, index: int) -> Array:
        return self._values[self.offsets[index] :][: self.sizes[index]]


class LSTMController(Controller):
    """One LSTM layer over the decisions that are taken, fed with an embedding of the choice before.

    Args:
        choices: of every decision.
        hidden: units, and length of the embedding.
        seed: of the initial parameters.
    """

    def __init__(self, choices: Choices, hidden: int = 100, seed: int = 0) -> None:
        super().__init__(choices)
        self.embedding = nn.Embedding(self.total + 1, hidden)  # the last row comes before the first decision
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.softmaxes = nn.Linear(hidden, self.total)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)
        self.freeze()

    @torch.no_grad()
    def freeze(self) -> None:
        """Copy the parameters for drawing; the LSTM's input side is worked out for every choice beforehand."""
        enter, recurrent, bias, other_bias = self.lstm.all_weights[0]
        self._inputs: Array = (self.embedding.weight @ enter.T + bias + other_bias).numpy().copy()
        self._recurrent: Array = recurrent.numpy().copy()
        self._out: Array = self.softmaxes.weight.numpy().copy()
        self._bias: Array = self.softmaxes.bias.numpy().copy()

    def _logits(self, places: Tensor, real: Tensor) -> Tensor:
        before = torch.full_like(places, self.total)
        before[:, 1:] = places[:, :-1]
        outputs, _ = self.lstm(self.embedding(before))
        logits: Tensor = self.softmaxes(outputs)
        return logits

    def _restart(self) -> None:
        self._hidden = self._cell = np.zeros(self._recurrent.shape[1], dtype=np.float32)
        self._follow(self.total)

    def _step(self, index: int) -> Array:
        where = slice(self.offsets[index], self.offsets[index] + self.sizes[index])
        logits: Array = self._out[where] @ self._hidden + self._bias[where]
        return logits

    def _follow(self, place: int) -> None:
        gates = self._inputs[place] + self._recurrent @ self._hidden
        enter, forget, new, out = gates.reshape(4, -1)  # torch's order
        self._cell = _sigmoid(forget) * self._cell + _sigmoid(enter) * np.tanh(new)
        self._hidden = _sigmoid(out) * np.tanh(self._cell)


def _sigmoid(values: Array) -> Array:
    result: Array = 0.5 * (1.0 + np.tanh(0.5 * values))
    return result


def _draw(logits: Array, generator: random.Random) -> int:
    """Return a position with the probability that the softmax gives it."""
    values: list[float] = logits.tolist()
    top = max(values)
    weights = list(itertools.accumulate(math.exp(value - top) for value in values))
    return bisect.bisect(weights, generator.random() * weights[-1], hi=len(weights) - 1)
