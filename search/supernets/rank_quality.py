"""How well scores rank architectures, measured against their true values, such as accuracies trained alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress.core.errors import InputError

Direction = Literal["maximize", "minimize"]
Values = NDArray[np.float64]

SMALLEST = 3
"""So many architectures are needed: any two are in perfect order, or in perfect disorder."""
TOP = (1, 5, 10)


@dataclass(frozen=True)
class Quality:
    """How well scores rank architectures; correlations are positive where the better score is the better network.

    Attributes:
        architectures: how many were compared.
        kendall: Kendall's tau-b; None where all scores, or all true values, are equal, as the other correlations.
        spearman: Spearman's rank correlation.
        spearman_ci95: its 95 % interval over resampled architectures (percentile bootstrap).
        pearson: Pearson's correlation; None also where a score is not finite.
        regret: k -> best true value minus the best among the k best scores, never negative, in the truth's unit.
        top: how many architectures are the top tenth.
        precision: the share of the `top` best scores that are among the `top` best networks.
        not_finite: how many scores are NaN or infinite; they count as the worst.
    """

    architectures: int
    kendall: float | None
    spearman: float | None
    spearman_ci95: tuple[float, float] | None
    pearson: float | None
    regret: dict[int, float]
    top: int
    precision: float
    not_finite: int

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values; the regrets' k are text."""
        found = asdict(self)
        interval = None if self.spearman_ci95 is None else list(self.spearman_ci95)
        return found | {"spearman_ci95": interval, "regret": {str(k): value for k, value in self.regret.items()}}


def quality(
    scores: ArrayLike,
    truth: ArrayLike,
    direction: Direction = "maximize",
    truth_direction: Direction = "maximize",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Quality:
    """Return how well `scores` rank the architectures whose true values are `truth`, both of shape (architectures,).

    Architectures with the same score are picked worst first, so that the order of the rows never flatters.

    Args:
        scores: one per architecture; NaN and infinite ones count as the worst.
        truth: finite, one per architecture.
        direction: which way scores are better; a loss is "minimize".
        truth_direction: which way true values are better.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than three architectures, as many scores as true values are not there, or a true value is
            not finite.
    """
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if s.ndim != 1 or s.shape != t.shape:
        raise InputError(f"{s.size} scores for {t.size} true values; one of each per architecture is needed")
    if len(s) < SMALLEST:
        raise InputError(f"{len(s)} architecture(s) cannot be compared in rank; at least {SMALLEST} are needed")
    if not np.isfinite(t).all():
        raise InputError(f"true value {int(np.argmin(np.isfinite(t)))} (from 0) is not a finite number")
    broken = ~np.isfinite(s)
    s, t = (-s if direction == "minimize" else s), (-t if truth_direction == "minimize" else t)
    s = np.where(broken, -np.inf, s)
    order = picks(s, t)
    top = math.ceil(len(s) / 10)
    passing = np.sort(t)[-top]  # equally good networks are all among the best
    return Quality(
        architectures=len(s),
        kendall=_kendall(s, t),
        spearman=_spearman(_groups(s), _groups(t), np.ones(len(s))),
        spearman_ci95=_interval(s, t, resamples, seed),
        pearson=None if broken.any() else _pearson(s, t, np.ones(len(s))),
        regret={k: float(t.max() - t[order[:k]].max()) for k in TOP if k <= len(s)},
        top=top,
        precision=float((t[order[:top]] >= passing).mean()),
        not_finite=int(broken.sum()),
    )


def picks(scores: Values, truth: Values) -> NDArray[np.intp]:
    """Return the places of the architectures, best score first, of equal scores the worse network first."""
    return np.lexsort((truth, -scores))


def _kendall(s: Values, t: Values) -> float | None:
    from scipy.stats import kendalltau

    found = float(kendalltau(s, t).statistic)
    return found if math.isfinite(found) else None


def _interval(s: Values, t: Values, resamples: int, seed: int) -> tuple[float, float] | None:
    """Return the bootstrap's 95 % interval of Spearman's correlation, over the resamples in which it is defined.

    A resample is how often each architecture was drawn: ranks follow from running sums, and nothing is sorted again.
    """
    generator = np.random.default_rng(seed)
    one, other = _groups(s), _groups(t)
    equal = np.full(len(s), 1 / len(s))
    drawn = (generator.multinomial(len(s), equal).astype(np.float64) for _ in range(resamples))
    found = [value for weights in drawn if (value := _spearman(one, other, weights)) is not None]
    if not found:
        return None
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def _groups(values: Values) -> NDArray[np.intp]:
    """Return the number of each value among the different values, the smallest 0."""
    return np.unique(values, return_inverse=True)[1]


def _spearman(one: NDArray[np.intp], other: NDArray[np.intp], weights: Values) -> float | None:
    return _pearson(_ranks(one, weights), _ranks(other, weights), weights)


def _ranks(groups: NDArray[np.intp], weights: Values) -> Values:
    """Return mean ranks where each element occurs `weights` times; equal elements share theirs."""
    counts = np.bincount(groups, weights)
    return (np.cumsum(counts) - (counts - 1) / 2)[groups]


def _pearson(x: Values, y: Values, weights: Values) -> float | None:
    """Return Pearson's correlation where each pair occurs `weights` times; None where one side is constant."""
    x, y = x[weights > 0], y[weights > 0]
    weights = weights[weights > 0]
    if (x == x[0]).all() or (y == y[0]).all():
        return None
    x, y = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
    scale = np.sqrt((weights * x * x).sum()) * np.sqrt((weights * y * y).sum())
    found = float((weights * x * y).sum() / scale) if scale > 0 else math.nan
    return min(1.0, max(-1.0, found)) if math.isfinite(found) else None
