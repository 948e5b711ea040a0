"""Make a latency table: measure networks drawn from a space, and split their times over their blocks.

Whole networks are measured, since a block on its own differs from the same block within a network: copies of its input
and output into other memory layouts, and operators that the runtime fuses across its border. A regression then tells
what each block takes; `METHOD` says how, `Fit` does it. What limits it is the noise of the timings: with one for each
network, on a machine with other work, predictions for MobileNetV3 at 96 pixels were off by 7 % on average (rank
correlation 0.62). Synthetic times, of which a third is up to 40 % too long, give the same figures; there the least of
two to four brings them to 0.5 % (0.99).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compress.core.errors import InputError
from compress.core.progress import say, track
from evaluators.candidates.latency import MeasuredLatency, QuickLatencyConfig, SearchLatency, Statistic
from evaluators.latency.table import Block, LatencyTable, Row, TableError, dot, options_of, rows_of, sizes_of
from spaces.architecture import Architecture
from spaces.space import Space

Matrix = np.ndarray[Any, Any]

METHOD = (
    "Networks drawn at random were timed whole, two to four times minutes apart; the least counts. By non-negative "
    "least squares on relative errors, blocks of one kind share a cost per block, MAC, input value, output value and "
    "weight; each block listed deviates from that by as much as the networks that hold it show (ridge regression, its "
    "strength by cross-validation). What all networks have alike, such as the stem, cannot be told from the constant "
    "and may be counted there."
)
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
LISTED = 1000
"""Further architectures, drawn but not measured, whose blocks are listed too."""
TRIED = 3
"""After so many networks it is known how long the others will take."""
LEAST_PASSES, PASSES = 2, 4
AGREED = 0.02


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
    pool = {arch: rows_of(space, arch) for arch in _draw(space, networks + check, networks + check + LISTED, seed)}
    drawn = _chosen(pool, networks, check)
    rows = [pool[arch] for arch in drawn]
    meter = MeasuredLatency(SearchLatency(measure=measure, statistic=statistic), space, directory, seed, True)
    times = _timed(meter, drawn)
    fitted = Fit(rows[:networks], np.array(times[:networks]))
    seen = Counter(row for network in rows[:networks] for row in set(network))
    task = space.default_task
    return LatencyTable(
        space=space.name,
        options=options_of(space),
        **sizes_of(task),
        target=measure.target.shown,
        **measure.model_dump(include={"threads", "batch", "provider", "optimization"}),
        statistic=statistic,
        environment=meter.environment(drawn[-1]),
        method=METHOD,
        networks=networks,
        constant_ms=fitted.constant,
        blocks=[
            Block(**asdict(row), latency_ms=fitted.row_ms(row), seen=seen[row])
            for row in dict.fromkeys(row for network in pool.values() for row in network)
        ],
        kinds=fitted.kinds,
        error=_error([fitted.predict(each) for each in rows[networks:]], times[networks:]),
    )


def _draw(space: Space, least: int, count: int, seed: int) -> list[Architecture]:
    """Return `count` different networks; fewer, but at least `least`, where the space has not that many."""
    generator = random.Random(seed)
    found: dict[Architecture, None] = {}
    for _ in range(20 * count):
        found[space.canonical(space.sample(generator))] = None
        if len(found) == count:
            break
    if len(found) < least:
        raise InputError(
            f"space {space.name} has too few different networks: {len(found)} found, {least} asked for; "
            "lower --networks or --check"
        )
    return list(found)


def _chosen(pool: Mapping[Architecture, Sequence[Row]], networks: int, check: int) -> list[Architecture]:
    """Return `networks` to fit to, which hold every kind of row that the pool has, and `check` others."""
    known: set[str] = set()
    first: list[Architecture] = []
    for arch, rows in pool.items():
        kinds = {row.kind for row in rows}
        if kinds - known:
            first.append(arch)
            known |= kinds
    if len(first) > networks:
        raise InputError(
            f"{len(first)} networks are needed to meet all {len(known)} kinds of blocks; raise --networks to that"
        )
    return list(dict.fromkeys([*first, *pool]))[: networks + check]


def _timed(meter: MeasuredLatency, drawn: Sequence[Architecture]) -> list[float]:
    """Return the latencies of networks: the least of two to `PASSES` timings, minutes apart.

    Other work on the machine slows a network down for seconds, even in CPU time, by up to a third. So all are timed
    in turn, once and again, and then those whose two least times differ by more than `AGREED`.
    """
    say(f"timing {len(drawn)} networks of space {meter.space.name}, each {LEAST_PASSES} to {PASSES} times")
    for number in range(1, PASSES + 1):
        left = [arch for arch in drawn if len(meter.times(arch)) < number and not _settled(meter.times(arch))]
        more = ", then another pass" if number < LEAST_PASSES else ", then more passes over some, if need be"
        more = more if number < PASSES else ""
        started = time.monotonic()
        for count, arch in enumerate(track(left, f"timing networks, pass {number}"), 1):
            meter.measure_again(arch)
            if count in (TRIED, len(left) // 2) and count < len(left):
                minutes = (time.monotonic() - started) / count * (len(left) - count) / 60
                say(f"pass {number}: {count} of {len(left)} networks timed, about {minutes:.1f} minutes left{more}")
    return [min(meter.times(arch)) for arch in drawn]


def _settled(times: Sequence[float]) -> bool:
    """Return whether further timings would hardly lower the least of `times`."""
    least = sorted(times)[:LEAST_PASSES]
    return len(least) == LEAST_PASSES and least[-1] <= (1 + AGREED) * least[0]


def _error(predicted: Sequence[float], measured: Sequence[float]) -> TableError:
    from scipy.stats import spearmanr

    off = np.abs(np.array(predicted) / np.array(measured) - 1)
    return TableError(
        networks=len(off),
        mean=float(off.mean()),
        median=float(np.median(off)),
        p90=float(np.quantile(off, 0.9)),
        max=float(off.max()),
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
    """Return the ridge regression's solution, its strength chosen by leave-one-out cross-validation.

    Strengths are in terms of the mean of the squared columns' sums.
    """
    from sklearn.linear_model import RidgeCV

    scale = np.square(inputs).sum() / inputs.shape[1] + 1e-12
    found: Matrix = RidgeCV([scale * each for each in STRENGTHS], fit_intercept=False).fit(inputs, target).coef_
    return found
