"""How the strengths of candidates become the weights of a mixture: what is computed, and where gradients go.

Strengths are (mixtures, candidates), -inf where a mixture has fewer candidates than others; so are weights, 0 there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

CLOSED = 1e-30
"""Weight of a candidate that is computed for its gradient alone: nothing beside any other, and not exactly 0."""


class Relaxation(ABC):
    """Weights of one pass; what is random in them comes from `generator`, which is on the CPU."""

    @abstractmethod
    def training(self, strengths: Tensor, generator: Generator) -> Tensor:
        """Return the weights of a pass that trains the candidates."""

    def searching(self, strengths: Tensor, generator: Generator) -> Tensor:
        """Return the weights of a pass that trains the strengths, to which gradients flow."""
        return self.training(strengths, generator)

    def settled(self, before: Tensor, after: Tensor, weights: Tensor) -> Tensor:
        """Return what becomes of strengths that an optimiser has changed, in a pass with `weights`."""
        return after


class Softmax(Relaxation):
    """All candidates in proportion to the exponents of their strengths (DARTS)."""

    def training(self, strengths: Tensor, generator: Generator) -> Tensor:
        """Return probabilities."""
        return strengths.softmax(1)


class Gumbel(Relaxation):
    """A softmax of strengths with Gumbel noise: the lower the temperature, the nearer to a draw of one candidate."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def training(self, strengths: Tensor, generator: Generator) -> Tensor:
        """Return a draw of relaxed one-hot vectors."""
        return ((strengths + gumbel(strengths, generator)) / self.temperature).softmax(1)


class Binary(Relaxation):
    """Gates of 0 and 1 (ProxylessNAS, sections 3.2.1 and 3.2.2): one path learns its weights, two their strengths."""

    def training(self, strengths: Tensor, generator: Generator) -> Tensor:
        """Return one-hot vectors, drawn by the probabilities of candidates."""
        return one_hot(strengths + gumbel(strengths, generator))

    def searching(self, strengths: Tensor, generator: Generator) -> Tensor:
        """Return gates of two candidates, drawn without replacement, of which one, drawn among the two, is open.

        The gradient of a strength is sum_j dL/dg_j p_j (delta_ij - p_i), with probabilities p among the two.
        """
        noisy = strengths + gumbel(strengths, generator)
        count = min(2, strengths.shape[1])
        pair = torch.zeros_like(strengths, dtype=torch.bool).scatter(1, noisy.topk(count).indices, True)
        pair &= strengths != -torch.inf
        among = strengths.masked_fill(~pair, -torch.inf)
        gates = torch.where(pair, one_hot(among + gumbel(strengths, generator)).clamp_min(CLOSED), 0.0)
        probabilities = among.softmax(1)
        return gates + (probabilities - probabilities.detach())

    def settled(self, before: Tensor, after: Tensor, weights: Tensor) -> Tensor:
        """Return strengths that leave the probabilities of candidates outside of the pair as they were."""
        pair = weights != 0
        was, now = (each.masked_fill(~pair, -torch.inf).logsumexp(1, keepdim=True) for each in (before, after))
        return torch.where(pair, after + (was - now), before)


def gumbel(strengths: Tensor, generator: Generator) -> Tensor:
    """Return standard Gumbel noise for `strengths`: their sum is largest for a candidate as often as it is likely."""
    exponential = torch.empty(strengths.shape, dtype=strengths.dtype).exponential_(generator=generator)
    return -exponential.log().to(strengths.device)


def one_hot(values: Tensor) -> Tensor:
    """Return 1 for the largest of each row, 0 for the others."""
    return F.one_hot(values.argmax(1), values.shape[1]).to(values.dtype)
