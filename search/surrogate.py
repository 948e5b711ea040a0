"""A Gaussian process over categorical decisions: what is expected of an architecture, and how surely.

Two architectures are alike as far as their decisions agree. The squared distance is a sum over decisions of
`a_d (u_d - u'_d)^2 + b_d [x_d != x'_d]`: u_d is a numeric choice's rank in 0..1, so that a width of 48 is nearer to 56
than to 8, and the second term lets every choice stand for itself. The kernel is Matern 5/2 of that distance; a_d, b_d,
the scale and the noise maximise the posterior density under log-normal priors whose mean distance does not grow with
the number of decisions (the scaling of Hvarfner et al., ICML 2024, "Vanilla Bayesian Optimization Performs Great in
High Dimensions").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Encoded = tuple[Tensor, Tensor]
"""Ranks (n, decisions) and 0/1 columns (n, all choices) of n assignments, float64."""
_STEPS = 30
_PRIOR_SD = 1.2


class Encoding:
    """Assignments of decisions as rows of numbers: a rank per decision, and one column per choice.

    A decision that was not taken has a column of its own, and a rank in the middle.
    """

    def __init__(self, choices: Mapping[str, tuple[Any, ...]]) -> None:
        self._codes = {name: {choice: code for code, choice in enumerate(given)} for name, given in choices.items()}
        self._sizes = np.array([len(given) + 1 for given in choices.values()])
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._numeric = np.array([all(_is_number(choice) for choice in given) for given in choices.values()])

    @property
    def decisions(self) -> int:
        """Number of decisions."""
        return len(self._sizes)

    def encode(self, assignments: Sequence[Mapping[str, Any]]) -> Encoded:
        """Return the ranks (n, decisions) and the 0/1 columns (n, all choices) of n assignments, as float64."""
        codes = np.array([[given.get(row.get(name), -1) for name, given in self._codes.items()] for row in assignments])
        taken = codes >= 0
        ranks = np.where(taken & self._numeric, codes / np.maximum(self._sizes - 2, 1), 0.5)
        columns = np.zeros((len(codes), int(self._sizes.sum())))
        at = self._offsets + np.where(taken, codes, self._sizes - 1)
        columns[np.arange(len(codes))[:, None], at] = 1.0
        return torch.from_numpy(ranks), torch.from_numpy(columns)

    def spread(self, per_decision: Tensor) -> Tensor:
        """Return one value per decision repeated for each of its columns."""
        return per_decision.repeat_interleave(torch.from_numpy(self._sizes))


class GaussianProcess:
    """Fitted to n assignments and their standardised scores."""

    def __init__(self, encoding: Encoding, assignments: Encoded, scores: Array, tune_on: Sequence[int]) -> None:
        """Fit.

        Args:
            encoding: of the decisions.
            assignments: n of them, encoded.
            scores: (n,), zero mean, unit variance.
            tune_on: which of them the kernel's parameters are tuned on; all of them give the posterior.
        """
        self._encoding = encoding
        self._data = assignments
        targets = torch.from_numpy(scores)
        some = torch.tensor(list(tune_on))
        self._theta = self._tuned((assignments[0][some], assignments[1][some]), targets[some])
        with torch.no_grad():
            covariance = self._kernel(self._theta, self._data, self._data) + self._noise(self._theta, len(scores))
            self._root = torch.linalg.cholesky(covariance)
            self._weights = torch.cholesky_solve(targets[:, None], self._root)

    @torch.no_grad()
    def predict(self, assignments: Encoded) -> tuple[Array, Array]:
        """Return mean and standard deviation of the score, without noise, of m assignments: two arrays (m,)."""
        cross = self._kernel(self._theta, assignments, self._data)
        mean = (cross @ self._weights)[:, 0]
        explained = torch.linalg.solve_triangular(self._root, cross.T, upper=False).square().sum(0)
        variance = (self._theta[-2].exp() - explained).clamp_min(1e-9)
        return mean.numpy(), variance.sqrt().numpy()

    def _tuned(self, data: Encoded, targets: Tensor) -> Tensor:
        count = self._encoding.decisions
        center = torch.cat([torch.full((count,), 0.5 - math.log(count)), torch.full((count,), -1.0 - math.log(count))])
        center = torch.cat([center, torch.tensor([0.0, math.log(0.05)])]).double()
        width = torch.full_like(center, _PRIOR_SD)
        width[-2] = 0.5
        theta = center.clone().requires_grad_()
        optimizer = torch.optim.Adam([theta], lr=0.15, betas=(0.8, 0.95))
        for _ in range(_STEPS):
            optimizer.zero_grad()
            root = torch.linalg.cholesky(self._kernel(theta, data, data) + self._noise(theta, len(targets)))
            solved = torch.linalg.solve_triangular(root, targets[:, None], upper=False)
            loss = 0.5 * solved.square().sum() + root.diagonal().log().sum()
            loss = loss + 0.5 * ((theta - center) / width).square().sum()
            loss.backward()
            optimizer.step()
        return theta.detach()

    def _noise(self, theta: Tensor, count: int) -> Tensor:
        return (theta[-1].exp() + 1e-5) * torch.eye(count, dtype=torch.float64)

    def _kernel(self, theta: Tensor, one: Encoded, other: Encoded) -> Tensor:
        count = self._encoding.decisions
        by_rank = (0.5 * theta[:count]).exp()
        by_column = self._encoding.spread((0.5 * (theta[count : 2 * count] - math.log(2))).exp())
        left = torch.cat([one[0] * by_rank, one[1] * by_column], dim=1)
        right = torch.cat([other[0] * by_rank, other[1] * by_column], dim=1)
        squared = left.square().sum(1)[:, None] + right.square().sum(1)[None] - 2 * left @ right.T
        distance = (5 * squared.clamp_min(0) + 1e-10).sqrt()
        return theta[-2].exp() * (1 + distance + distance.square() / 3) * (-distance).exp()


def _is_number(choice: Any) -> bool:
    return isinstance(choice, int | float) and not isinstance(choice, bool)
