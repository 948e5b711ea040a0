"""The table of a sensitivity scan: what the accuracy loses where one group alone is narrowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from compress.core.formatting import MISSING, signed
from compress.report.details import Sensitivity

if TYPE_CHECKING:
    from evaluators.tasks import Metric


@dataclass(frozen=True)
class SensitivityTable:
    """Titles of the columns, and a row for every group: its name, its unit, and the change of `metric` in each."""

    metric: Metric
    columns: list[str]
    rows: list[tuple[str, str, list[str]]]


def sensitivity_table(scanned: Sequence[Sensitivity], metric: Metric) -> SensitivityTable | None:
    """Return the table of `metric`, the groups that lose most first; None where nothing was scanned.

    A column holds the scans of each group in order of their ratio. Groups of few units lose other shares than were
    asked for; then the cell tells its own.
    """
    groups: dict[tuple[str, str], list[Sensitivity]] = {}
    for row in sorted(scanned, key=lambda row: row.ratio):
        groups.setdefault((row.group, row.kind), []).append(row)
    if not groups:
        return None
    width = max(map(len, groups.values()))
    shares = [median(rows[place].ratio for rows in groups.values() if place < len(rows)) for place in range(width)]
    ordered = sorted(groups.items(), key=lambda item: -max(row.drop for row in item[1]))
    return SensitivityTable(
        metric=metric,
        columns=[f"{_percent(share)} removed" for share in shares],
        rows=[(group, kind, _cells(rows, shares, metric)) for (group, kind), rows in ordered],
    )


def _cells(rows: Sequence[Sensitivity], shares: Sequence[float], metric: Metric) -> list[str]:
    worse = -1 if metric.direction == "maximize" else 1
    cells = [
        signed(worse * row.drop, metric.decimals(row.drop))
        + ("" if _percent(row.ratio) == _percent(share) else f" (at {_percent(row.ratio)})")
        for row, share in zip(rows, shares, strict=False)
    ]
    return cells + [MISSING] * (len(shares) - len(cells))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
