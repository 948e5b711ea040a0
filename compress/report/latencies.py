"""The table of a pruning to several latencies: what each budget has given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.core.formatting import MISSING
from compress.report.details import LatencyRow

if TYPE_CHECKING:
    from evaluators.tasks import Metric


def latency_table(rows: Sequence[LatencyRow], metric: Metric) -> list[list[str]]:
    """Return the cells of each budget: budget, latency, ms, ratio, MACs, blocks removed, metric; none for one budget.

    A single one is told by the notes and the closing table.
    """
    return [_cells(row, metric) for row in rows] if len(rows) > 1 else []


def _cells(row: LatencyRow, metric: Metric) -> list[str]:
    value = row.metrics.get(metric.name)
    return [
        ", ".join(f"{kind}: {target:g}" for kind, target in row.budget.items()),
        f"{row.latency:.3f} [{row.ci95[0]:.3f}, {row.ci95[1]:.3f}]",
        f"{row.latency_ms:.3g}",
        f"{1 / row.latency:.2f}\u00d7",
        f"{row.macs[1] / row.macs[0]:.3f}" if row.macs[0] else MISSING,
        str(len(row.blocks_removed)),
        MISSING if value is None else metric.show(value),
    ]
