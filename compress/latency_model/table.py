"""The time of one kind of unit at every choice of its widths: measured where it was, else completed from the rest."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from statistics import median

import numpy as np

Widths = tuple[int, ...]
RIDGE = 1e-3
LEAST_MS = 1e-4  # what is fused away takes no time, and has no logarithm


class Table:
    """Times in ms by the widths of a unit's groups.

    What was not measured is completed from what was: each width of each group has a factor of its own, found by least
    squares on the logarithms (an outer product: what a matrix product and a convolution take), so that nothing is ever
    drawn across a step of the staircase. A width that occurs in no measurement has no time.
    """

    def __init__(self, measured: Iterable[tuple[Widths, float]]) -> None:
        self._times: dict[Widths, list[float]] = {}
        for widths, ms in measured:
            self._times.setdefault(widths, []).append(ms)
        self._factors: tuple[float, dict[Hashable, float]] | None = None

    def knows(self, widths: Widths) -> bool:
        """Whether each of these widths occurs in a measurement."""
        return widths in self._times or all(self._seen(place, width) for place, width in enumerate(widths))

    def _seen(self, place: int, width: int) -> bool:
        return any(each[place] == width for each in self._times)

    def add(self, widths: Widths, ms: float) -> None:
        """Enter a measurement."""
        self._times.setdefault(widths, []).append(ms)
        self._factors = None

    def ms(self, widths: Widths) -> float:
        """Return the time; raises KeyError for a width that was not measured."""
        if widths in self._times:
            return median(self._times[widths])
        if self._factors is None:
            self._factors = self._fitted()
        constant, factors = self._factors
        return float(np.exp(constant + sum(factors[place, width] for place, width in enumerate(widths))))

    def _fitted(self) -> tuple[float, dict[Hashable, float]]:
        columns: dict[Hashable, int] = {}
        for widths in self._times:
            for key in enumerate(widths):
                columns.setdefault(key, len(columns))
        rows = np.zeros((len(self._times), len(columns)))
        logs = np.array([np.log(max(LEAST_MS, median(each))) for each in self._times.values()])
        weights = np.sqrt([len(each) for each in self._times.values()])
        for row, widths in enumerate(self._times):
            rows[row, [columns[key] for key in enumerate(widths)]] = 1.0
        constant = float(np.average(logs, weights=weights**2))
        left = np.concatenate([rows * weights[:, None], RIDGE**0.5 * np.eye(len(columns))])
        right = np.concatenate([(logs - constant) * weights, np.zeros(len(columns))])
        found = np.linalg.lstsq(left, right, rcond=None)[0]
        return constant, {key: float(found[column]) for key, column in columns.items()}
