"""The latency of a given network at any widths and without any of its blocks: a constant, and a sum over its layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compress.core.errors import InputError
from compress.graph.graph import Graph, inside
from compress.latency_model.grid import Network

FEW = 4
"""Of fewer whole networks than this one factor is learned, not two."""


@dataclass(frozen=True)
class Term:
    """What some layers of a network take: `time(widths of groups, in their order)` in ms.

    They are gone where `block`, or another block around them, is dropped.
    """

    name: str
    groups: tuple[str, ...]
    block: str | None
    time: Callable[[tuple[int, ...]], float]

    def ms(self, widths: Mapping[str, int]) -> float:
        """Return the time at these widths; `widths` has all of `groups`."""
        at = tuple(widths[group] for group in self.groups)
        try:
            return self.time(at)
        except KeyError:
            shown = ", ".join(f"{group} {width}" for group, width in zip(self.groups, at, strict=True))
            raise InputError(
                f"latency: no network with {shown} was measured; `choices` tells the widths, `including` measures more"
            ) from None


@dataclass(frozen=True)
class LatencyModel:
    """Predicts ms per batch on a target: `constant + factor * (sum of the terms)`, see `latency_model`.

    `error` is the mean of |predicted / measured - 1| over the measured networks; `facts` say where and how they were.
    """

    graph: Graph
    terms: tuple[Term, ...]
    constant: float
    factor: float
    widths: Mapping[str, tuple[int, ...]]
    error: float
    facts: Mapping[str, Any]
    more: Callable[[Sequence[Network]], LatencyModel] | None = field(default=None, compare=False, repr=False)

    @property
    def dense_ms(self) -> float:
        """The time of the network as it is."""
        return self.ms()

    def choices(self, group: str) -> tuple[int, ...]:
        """Return the widths of `group` that are worth considering, ascending, its present one last.

        Raises:
            InputError: there is no such group.
        """
        if group not in self.widths:
            raise InputError(f"the model has no group {group!r}; it has {', '.join(self.widths)}")
        return self.widths[group]

    def step(self, group: str, width: int) -> dict[str, int]:
        """Return the widths of `group` and of the groups that are tied to it, when it is this wide."""
        tie = next((tie for tie in self.graph.ties if group in tie), (group,))
        sizes = self.graph.widths()
        return {name: width * sizes[name] // sizes[group] for name in tie}

    def ms(self, widths: Mapping[str, int] | None = None, dropped: Collection[str] = ()) -> float:
        """Return the time where groups have these widths (others their present one) and these blocks are gone.

        Raises:
            InputError: a width that was not measured; `choices` tells those that were.
        """
        return self.constant + self.factor * self.layers_ms(widths, dropped)

    def layers_ms(self, widths: Mapping[str, int] | None = None, dropped: Collection[str] = ()) -> float:
        """Return the sum of the terms."""
        return sum(self.by_term(widths, dropped).values())

    def by_term(self, widths: Mapping[str, int] | None = None, dropped: Collection[str] = ()) -> dict[str, float]:
        """Return the time of each term that is left, before constant and factor."""
        kept = {**self.graph.widths(), **(widths or {})}
        left = (term for term in self.terms if term.block is None or not inside(term.block, dropped))
        return {term.name: term.ms(kept) for term in left}

    def including(self, widths: Sequence[Mapping[str, int]]) -> LatencyModel:
        """Return the model that knows these widths, too: one copy for each entry is measured, all in one session.

        Raises:
            CompressError: a copy could not be exported, or the target failed.
        """
        assert self.more is not None, "made by hand, not by `latency_model`"
        return self.more([Network({**self.graph.widths(), **each}) for each in widths])

    def corrected(self, measured: Sequence[tuple[Mapping[str, int], Collection[str], float]]) -> LatencyModel:
        """Return the model with constant and factor refitted to (widths, dropped, ms) of whole networks."""
        sums = [self.layers_ms(widths, dropped) for widths, dropped, _ in measured]
        times = [ms for _, _, ms in measured]
        if len(measured) < FEW:
            before = [self.constant + self.factor * each for each in sums]
            scale = float(np.median(np.divide(times, before))) if measured else 1.0
            return replace(self, constant=self.constant * scale, factor=self.factor * scale)
        constant, factor, error = fitted(sums, times)
        return replace(self, constant=constant, factor=factor, error=error)


ROUNDS = 10


def fitted(sums: Sequence[float], times: Sequence[float]) -> tuple[float, float, float]:
    """Return constant, factor and mean relative error of `times = constant + factor * sums`.

    The sum of absolute relative residuals is least, by reweighted least squares: one disturbed time moves little.
    """
    x, y = np.array(sums), np.array(times)
    rows = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    weights = np.ones_like(y)
    for _ in range(ROUNDS):
        found = np.linalg.lstsq(rows * weights[:, None], weights, rcond=None)[0]
        off = np.abs(rows @ found - 1)
        weights = 1 / np.sqrt(np.maximum(off, 0.01))
    if found[1] <= 0:  # times that do not grow with the sums: noise, or sums that hardly differ
        found = np.array([0.0, float(np.median(y / x))])
    off = np.abs((found[0] + found[1] * x) / y - 1)
    return float(found[0]), float(found[1]), float(off.mean())
