"""Make a latency table: measure networks drawn from a space, and split their times over their blocks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from compress.progress import say, track
from evaluators.latency_table import Block, LatencyTable, Row, TableError, dot, rows_of
from evaluators.meter import MeasuredLatency, QuickLatencyConfig, SearchLatency, Statistic
from evaluators.targets import name_of
from spaces.architecture import Architecture
from spaces.space import Space

Matrix = np.ndarray[Any, Any]

METHOD = (
    "Networks drawn at random were timed whole. By non-negative least squares on relative errors, blocks of one kind "
    "share a cost per block, MAC, input value, output value and weight; each block listed deviates from that by as "
    "much as the networks that hold it show (ridge regression, its strength by cross-validation). What all "
    "networks have alike, such as the stem, cannot be told from the constant and may be counted there."
)
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
FOLDS = 5
LISTED = 1000
"""Further architectures, drawn but not measured, whose blocks are listed too."""


def survey(
    space: Space,
    measure: QuickLatencyConfig,
    statistic: Statistic,
    networks: int,
    check: int,
    seed: int,
    directory: Path,
) -> LatencyTable:
    """Measure `networks` + `check` different networks of `space` (for its default task) and return its table.

    Args:
        space: one that describes its layers.
        measure: where and how long each network is timed.
        statistic: which of its times counts.
        networks: how many the table is fitted to.
        check: how many its error is measured on.
        seed: of the draw.
        directory: keeps what was measured, so that an interrupted survey goes on.

    Raises:
        InputError: the space has too few networks, or does not describe their layers.
    """
    drawn = _draw(space, networks + check, seed)
    rows = [rows_of(space, arch) for arch in drawn]
    meter = MeasuredLatency(SearchLatency(measure=measure, statistic=statistic), space, directory, seed)
    say(f"timing {len(drawn)} networks of space {space.name}, about {3 * len(drawn) / 60:.0f} minutes or more")
    times = [meter.measure(arch) for arch in track(drawn, "timing networks")]
    fitted = Fit(rows[:networks], np.array(times[:networks]))
    further = _draw(space, LISTED, seed + 1, enough=False)
    every = [*rows, *(rows_of(space, arch) for arch in further)]
    seen = Counter(row for network in rows[:networks] for row in set(network))
    task = space.default_task
    return LatencyTable(
        space=space.name,
        options=space.config.model_dump(mode="json", exclude_defaults=True),
        **asdict(task),
        target=name_of(measure.target),
        **measure.model_dump(include={"threads", "batch", "provider", "optimization"}),
        statistic=statistic,
        environment=meter.environment(drawn[-1]),
        method=METHOD,
        networks=networks,
        constant_ms=fitted.constant,
        blocks=[
            Block(**asdict(row), latency_ms=fitted.row_ms(row), seen=seen[row])
            for row in dict.fromkeys(row for network in every for row in network)
            if row.kind in fitted.kinds
        ],
        kinds=fitted.kinds,
        error=_error([fitted.predict(each) for each in rows[networks:]], times[networks:]),
    )


def _draw(space: Space, count: int, seed: int, enough: bool = True) -> list[Architecture]:
    """Return `count` different networks; fewer, unless they have to be enough, where the space has not that many."""
    generator = random.Random(seed)
    found: dict[Architecture, None] = {}
    for _ in range(20 * count):
        found[space.canonical(space.sample(generator))] = None
        if len(found) == count:
            return list(found)
    if enough:
        raise InputError(
            f"space {space.name} has too few different networks: {len(found)} found, {count} asked for; "
            "lower --networks or --check"
        )
    return list(found)


def _error(predicted: Sequence[float], measured: Sequence[float]) -> TableError:
    from scipy.stats import spearmanr

    off = np.abs(np.array(predicted) / np.array(measured) - 1)
    return TableError(
        networks=len(off),
        median=float(np.median(off)),
        p90=float(np.quantile(off, 0.9)),
        spearman=float(spearmanr(predicted, measured).statistic),
    )


class Fit:
    """Latencies of rows that explain the `times` (ms) of the networks `rows`.

    A row takes (1 + d) times what the law of its kind says; d is shrunk towards 0, the more the fewer networks hold
    the row. Nothing takes less than no time.
    """

    def __init__(self, rows: Sequence[Sequence[Row]], times: Matrix) -> None:
        self.constant, self.kinds = _laws(rows, times)
        self._deviations: dict[Row, float] = {}
        base = np.array([self.predict(each) for each in rows])
        distinct = sorted({row for each in rows for row in each}, key=str)
        place = {row: index for index, row in enumerate(distinct)}
        shares = np.zeros((len(rows), len(distinct)))
        for network, each in enumerate(rows):
            for row in each:
                shares[network, place[row]] += self.row_ms(row) / times[network]
        found = _ridge(shares, 1 - base / times)
        self._deviations = {row: max(-1.0, float(found[index])) for row, index in place.items()}

    def row_ms(self, row: Row) -> float:
        """Return what a row takes, of a known kind."""
        return dot(self.kinds[row.kind], row.work) * (1 + self._deviations.get(row, 0.0))

    def predict(self, rows: Sequence[Row]) -> float:
        """Return what a network of known kinds takes."""
        return self.constant + sum(map(self.row_ms, rows))


def _laws(rows: Sequence[Sequence[Row]], times: Matrix) -> tuple[float, dict[str, list[float]]]:
    """Return the constant and, for each kind of row, what a unit of each kind of work takes; none is negative."""
    from scipy.optimize import nnls

    kinds = sorted({row.kind for each in rows for row in each})
    width = len(rows[0][0].work)
    work = np.zeros((len(rows), 1 + width * len(kinds)))
    work[:, 0] = 1
    for network, each in enumerate(rows):
        for row in each:
            start = 1 + width * kinds.index(row.kind)
            work[network, start : start + width] += row.work
    scale = np.maximum(work.max(axis=0), 1e-12)
    found = nnls(work / scale / times[:, None], np.ones(len(rows)))[0] / scale
    laws = found[1:].reshape(len(kinds), width).tolist()
    return float(found[0]), dict(zip(kinds, laws, strict=True))


def _ridge(inputs: Matrix, target: Matrix) -> Matrix:
    """Return the ridge regression's solution, its strength chosen by cross-validation."""
    fold = np.arange(len(target)) % FOLDS

    def missed(strength: float) -> float:
        total = 0.0
        for number in range(FOLDS):
            fitted = _solve(inputs[fold != number], target[fold != number], strength)
            total += float(np.square(inputs[fold == number] @ fitted - target[fold == number]).sum())
        return total

    return _solve(inputs, target, min(STRENGTHS, key=missed))


def _solve(inputs: Matrix, target: Matrix, strength: float) -> Matrix:
    square = inputs.T @ inputs
    penalty = strength * (np.trace(square) / len(square) + 1e-12)
    solution: Matrix = np.linalg.solve(square + penalty * np.eye(len(square)), inputs.T @ target)
    return solution
