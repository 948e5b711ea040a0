"""The table that closes a run on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.core.text_table import text_table
from compress.report.rank import figure_rows
from compress.report.schema import Rank, Report, parse
from compress.report.search_charts import figure
from compress.report.tables import MetricRow, model_rows, title_of_one


def closing_table(report: dict[str, Any]) -> str:
    """Return what was measured of the baseline and the final model, side by side; of one model, in one column."""
    found = parse(Report, report, "report.json")
    rows = _told(model_rows(found))
    if found.rank is not None and not rows:
        return _ranking(found.rank)
    if found.alone:
        alone = [(row.label, row.final.text) for row in rows] or _figures(found)
        return text_table(("", title_of_one(found).lower()), alone)
    sides = [(row.label, row.baseline.text, row.final.text, row.difference) for row in rows]
    return text_table(("", "baseline", "final", "change"), sides)


def _told(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Return the rows that say something: without nonzero counts where no weight is zero."""
    by_key = {row.key: row for row in rows}

    def is_repeated(row: MetricRow) -> bool:
        whole = by_key.get(row.key.removeprefix("nonzero_"))
        return whole is not None and whole is not row and (row.baseline, row.final) == (whole.baseline, whole.final)

    return [row for row in rows if row.group in ("Quality", "Size", "Latency") and not is_repeated(row)]


def _ranking(rank: Rank) -> str:
    """Return the figures of a ranking; where no true values are known, what was scored."""
    if not rank.proxies:
        return text_table(("", "networks"), [(f"scored by {rank.score}", str(rank.architectures))])
    return text_table(
        ("", *(proxy.name for proxy in rank.proxies)), [(name, *cells) for name, cells in figure_rows(rank)]
    )


def _figures(report: Report) -> list[tuple[str, str]]:
    """Return what a search over a table of results, with columns of its own, says of the best row."""
    metrics = report.stages[0].metrics if report.stages else {}
    return [(name, figure(value)) for name, value in metrics.items() if isinstance(value, int | float)]
