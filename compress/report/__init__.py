"""What a run directory shows to people: report.html, the summary line and the side-by-side table."""

from __future__ import annotations

from compress.report.compare import ComparedRun, compare_runs, comparison_json, comparison_notes, comparison_table
from compress.report.page import write_report
from compress.report.summary import summary_line, summary_of

__all__ = [
    "ComparedRun",
    "compare_runs",
    "comparison_json",
    "comparison_notes",
    "comparison_table",
    "summary_line",
    "summary_of",
    "write_report",
]
