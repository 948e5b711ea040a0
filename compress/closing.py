"""The table that closes a run on standard output."""

from __future__ import annotations

from typing import Any

from compress.report.schema import Report, parse
from compress.report.tables import model_rows
from compress.text_table import text_table


def closing_table(report: dict[str, Any]) -> str:
    """Return what was measured of the baseline and the final model, side by side."""
    rows = [
        (row.label, row.baseline.text, row.final.text, row.difference)
        for row in model_rows(parse(Report, report, "report.json"))
        if row.group in ("Accuracy", "Size", "Latency")
    ]
    return text_table(("", "baseline", "final", "change"), rows)
