"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.core.formatting import MISSING, count, file_size, signed, three_digits, times
from compress.report.results import Run, read_run
from compress.report.summary import sizes

if TYPE_CHECKING:
    from rich.table import Table

    from evaluators.tasks import Metric


@dataclass(frozen=True)
class ComparedRun:
    """One run in a comparison; what it did not measure is None.

    `macs` and `params` are those of the tensors; `macs_change` and `params_change` (percent) count only nonzero weights
    where masks are in place. `value` is the task's main metric, `change` how it differs from the baseline's;
    `latency_ratio` is baseline ÷ final.
    """

    run: str
    name: str
    model: str | None
    metric: Metric
    value: float | None
    change: float | None
    macs: float | None
    nonzero_macs: float | None
    macs_change: float | None
    params: float | None
    nonzero_params: float | None
    params_change: float | None
    onnx_bytes: float | None
    latency_p50: float | None
    latency_ratio: float | None
    latency_ratio_ci95: tuple[float | None, float | None] | None
    efficiency: float | None
    contended: bool | None
    threads: float | None
    batch: float | None
    baseline_macs: float | None
    machine: str | None


def compare_runs(run_dirs: Sequence[Path]) -> list[ComparedRun]:
    """Return one row per run directory, in the order given.

    Raises:
        InputError: a directory holds no report.json, or one of another schema.
    """
    return [_compared(read_run(Path(run_dir))) for run_dir in run_dirs]


def comparison_json(rows: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Return the rows as plain values for JSON; the main metric under its own name, such as accuracy_change."""
    return [dict(_json(row)) for row in rows]


def _json(row: ComparedRun) -> Iterator[tuple[str, Any]]:
    names = {"value": row.metric.name, "change": f"{row.metric.name}_change"}
    for key, value in asdict(row).items():
        if key != "metric":
            yield names.get(key, key), value


def _compared(run: Run) -> ComparedRun:
    baseline, final, ratio = run.report.compared, run.report.final, run.report.latency_ratio
    main = run.report.main
    before, after = baseline.value(main.name), final.value(main.name)
    return ComparedRun(
        run=run.shown_path,
        name=run.report.name,
        model=run.model,
        metric=main,
        value=after,
        change=None if before is None or after is None else after - before,
        macs=final.macs,
        nonzero_macs=final.nonzero_macs,
        macs_change=_change(*sizes(baseline, final, "macs")),
        params=final.params,
        nonzero_params=final.nonzero_params,
        params_change=_change(*sizes(baseline, final, "params")),
        onnx_bytes=final.onnx_bytes,
        latency_p50=final.latency_ms.p50,
        latency_ratio=ratio.median,
        latency_ratio_ci95=ratio.ci95,
        efficiency=run.report.efficiency,
        contended=final.latency_ms.contended,
        threads=final.latency_ms.threads,
        batch=final.latency_ms.batch,
        baseline_macs=baseline.macs,
        machine=_machine(run.report.environment),
    )


def _change(label: str, before: float | None, after: float | None) -> float | None:
    return 100 * (after - before) / before if before and after is not None else None


def _machine(environment: dict[str, Any]) -> str | None:
    """Return the processor's name."""
    return environment.get("cpu") or None


def comparison_table(rows: Sequence[ComparedRun]) -> Table:
    """Return the runs as a table for the terminal; what no run measured is left out.

    Up to four runs are columns, so that they fit 80 characters; more are rows.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    labels = tuple(dict.fromkeys(row.metric.label for row in rows))
    titles = ("run", *labels, *_TITLES)
    lines = [titles, *(_cells(row, labels) for row in rows)]
    shown = [index for index in range(len(titles)) if any(line[index] for line in lines[1:])]
    grid = [[line[index] or MISSING for index in shown] for line in lines]
    if len(rows) <= _RUNS_AS_COLUMNS:
        grid = [list(line) for line in zip(*grid, strict=True)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(grid[0]):
        table.add_column(
            Text(title), justify="right" if index else "left", overflow="fold", min_width=min(len(title), 10)
        )
    for line in grid[1:]:
        table.add_row(*(Text(cell) for cell in line))
    return table


_TITLES = ("MACs", "params", "ONNX", "p50 ms", "ratio", "efficiency")
_RUNS_AS_COLUMNS = 4


def _cells(row: ComparedRun, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the printed cells of a row, empty where not measured; one for each of the `labels` of main metrics."""
    macs, macs_mark = _effective(row.macs, row.nonzero_macs)
    params, params_mark = _effective(row.params, row.nonzero_params)
    busy = "!" if row.contended else ""
    return (
        row.run,
        *(_main(row) if label == row.metric.label else "" for label in labels),
        "" if macs is None else f"{_whole(count(macs))}{macs_mark}{_in_brackets(row.macs_change, 0, ' %')}",
        "" if params is None else f"{_whole(count(params))}{params_mark}{_in_brackets(row.params_change, 0, ' %')}",
        "" if row.onnx_bytes is None else _whole(file_size(row.onnx_bytes)),
        "" if row.latency_p50 is None else f"{three_digits(row.latency_p50)}{busy}",
        "" if row.latency_ratio is None else times(row.latency_ratio),
        "" if row.efficiency is None else f"{row.efficiency:.2f}",
    )


def _main(row: ComparedRun) -> str:
    if row.value is None:
        return ""
    digits = row.metric.decimals(row.value, row.value - (row.change or 0))
    unit = "" if row.metric.unit in ("", "%") else f" {row.metric.unit}"
    return _whole(f"{row.value:.{digits}f}{unit}") + _in_brackets(row.change, digits)


def _whole(text: str) -> str:
    """Keep a figure and its unit on one line."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _effective(whole: float | None, nonzero: float | None) -> tuple[float | None, str]:
    """Return the number that counts, and a star where zeros are left out of it."""
    if whole is not None and nonzero is not None and nonzero < whole:
        return nonzero, "*"
    return whole, ""


def _in_brackets(change: float | None, decimals: int, unit: str = "") -> str:
    return "" if change is None else " " + _whole(f"({signed(change, decimals)}{unit})")


def comparison_notes(rows: Sequence[ComparedRun]) -> list[str]:
    """Return what a reader must know before comparing: marks used, and conditions that differ between the runs."""
    notes = []
    if any(_effective(row.macs, row.nonzero_macs)[1] or _effective(row.params, row.nonzero_params)[1] for row in rows):
        notes.append("* nonzero weights only: masks leave zeros in the tensors")
    if any(row.contended for row in rows):
        notes.append("! the machine was busy during the measurement; trust the ratio more than the milliseconds")
    for what, values in (
        ("on different machines", {row.machine for row in rows if row.latency_p50 is not None and row.machine}),
        ("with different thread counts", {row.threads for row in rows if row.threads is not None}),
        ("at different batch sizes", {row.batch for row in rows if row.batch is not None}),
    ):
        if len(values) > 1:
            notes.append(f"latencies were measured {what}: compare the ratios, not the milliseconds")
    baselines = {row.baseline_macs for row in rows if row.baseline_macs is not None}
    if len(baselines) > 1:
        notes.append("the runs start from different baselines: changes are relative to each run's own")
    return notes
