"""The tables and sentences of a report, as rows that a template prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.core.formatting import (
    MISSING,
    count,
    exact,
    file_size,
    milliseconds,
    percent_change,
    signed,
    three_digits,
    times,
)
from compress.report.details import Details, Layer
from compress.report.schema import Metrics, Report
from compress.report.summary import masked, sizes, told_by_cpu_time

if TYPE_CHECKING:
    from evaluators.tasks import Metric

ALIGNED_KINDS = ("channels", "mlp")


@dataclass(frozen=True)
class Cell:
    """A figure as printed, and exactly (None where it was not measured or is no number)."""

    text: str
    exact: str | None = None


@dataclass(frozen=True)
class MetricRow:
    """One metric of both models."""

    key: str
    label: str
    baseline: Cell
    final: Cell
    difference: str
    group: str


def _ratio(before: float, after: float) -> str:
    return percent_change(before, after) if before else MISSING


def _none(before: float, after: float) -> str:
    return ""


_Show = Callable[[float], str]
_Compare = Callable[[float, float], str]
_Row = tuple[str, str, str, _Show, _Compare]
_ROWS: tuple[_Row, ...] = (
    ("params", "Parameters", "Size", count, _ratio),
    ("nonzero_params", "Nonzero parameters", "Size", count, _ratio),
    ("macs", "MACs", "Size", count, _ratio),
    ("nonzero_macs", "Nonzero MACs", "Size", count, _ratio),
    ("onnx_bytes", "ONNX file", "Size", file_size, _ratio),
    ("onnx_parity_max_rel", "ONNX parity, largest relative error", "Size", lambda value: f"{value:.1e}", _none),
    ("latency_ms.p10", "Latency p10", "Latency", milliseconds, _ratio),
    ("latency_ms.p50", "Latency p50", "Latency", milliseconds, _ratio),
    ("latency_ms.p90", "Latency p90", "Latency", milliseconds, _ratio),
    ("latency_ms.p99", "Latency p99", "Latency", milliseconds, _ratio),
    ("latency_ms.min", "Latency, fastest run", "Latency", milliseconds, _ratio),
    ("latency_ms.cpu_p50", "CPU time p50", "Latency", milliseconds, _ratio),
    ("latency_ms.runs", "Timed runs", "How it was timed", lambda value: f"{value:g}", _none),
    ("latency_ms.threads", "Threads", "How it was timed", lambda value: f"{value:g}", _none),
    ("latency_ms.batch", "Batch", "How it was timed", lambda value: f"{value:g}", _none),
    ("latency_ms.provider", "Provider", "How it was timed", str, _none),
    ("latency_ms.contended", "Machine busy meanwhile", "How it was timed", str, _none),
)


def model_rows(report: Report) -> list[MetricRow]:
    """Return a row for every metric that at least one of the two models has."""
    rows = []
    for key, label, group, show, compare in (*map(_row_of, report.metrics), *_ROWS):
        before, after = _value(report.baseline, key), _value(report.final, key)
        if before is None and after is None:
            continue
        both = _is_number(before) and _is_number(after)
        rows.append(
            MetricRow(
                key, label, _cell(before, show), _cell(after, show), compare(before, after) if both else "", group
            )
        )
    return rows


def _row_of(metric: Metric) -> _Row:
    return (
        metric.name,
        metric.title,
        "Quality",
        metric.show,
        metric.show_change,
    )


def title_of_one(report: Report) -> str:
    """Return what the model of a run that compares nothing is called."""
    return "What was found" if any(stage.name == "search" for stage in report.stages) else "The model"


def _value(metrics: Metrics, key: str) -> Any:
    value: Any = metrics
    for part in key.split("."):
        value = getattr(value, part, None)  # a metric of the task may be absent
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any, show: _Show) -> Cell:
    if value is None:
        return Cell(MISSING)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    return Cell(show(value), exact(value)) if _is_number(value) else Cell(str(value))


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page."""

    value: str
    label: str
    detail: str


def tiles(report: Report) -> list[Tile]:
    """Return the few figures that tell how the run went; only measured ones."""
    if report.alone:
        return list(_tiles_of_one(report))
    found = []
    for name, label in (("macs", "MACs"), ("params", "parameters")):
        prefix, before, after = sizes(report.baseline, report.final, name)
        if before and after is not None:
            found.append(Tile(percent_change(before, after), f"{prefix}{label}", f"{count(before)} → {count(after)}"))
    main = report.main
    before, after = report.baseline.value(main.name), report.final.value(main.name)
    if before is not None and after is not None:
        label = f"{main.change_unit or 'change'} of {main.label}"
        change = signed(after - before, main.decimals(before, after))
        found.append(Tile(change, label, f"{main.show(before)} → {main.show(after)}"))
    ratio, interval = report.latency_ratio.median, _interval(report)
    if ratio is not None:
        detail = f"{times(interval[0])} to {times(interval[1])} (95 %)" if interval else "baseline ÷ final time"
        found.append(Tile(times(ratio), "as fast", detail))
    if report.efficiency is not None and not _same_arithmetic(report):
        found.append(Tile(f"{report.efficiency:.2f}", "efficiency", "speed-up ÷ MAC ratio"))
    return found


def _tiles_of_one(report: Report) -> Iterator[Tile]:
    main, metrics = report.main, report.final
    if metrics.macs is not None:
        yield Tile(count(metrics.macs), "MACs", "for one image")
    if metrics.params is not None:
        yield Tile(count(metrics.params), "parameters", "")
    value = metrics.value(main.name)
    if value is not None:
        yield Tile(main.show(value), main.label, "")
    if metrics.latency_ms.told is not None:
        batch, label = metrics.latency_ms.batch, f"median {'CPU time' if told_by_cpu_time(report) else 'latency'}"
        yield Tile(milliseconds(metrics.latency_ms.told), label, "" if batch is None else f"batch {batch:g}")


def _interval(report: Report) -> tuple[float, float] | None:
    low, high = report.latency_ratio.ci95 or (None, None)
    return None if low is None or high is None else (low, high)


def latency_sentences(report: Report) -> list[str]:
    """Return what was found about speed, in plain words; nothing where it was not measured."""
    ratio, interval = report.latency_ratio.median, _interval(report)
    sentences = []
    if ratio is not None:
        blocks = report.latency_ratio.blocks
        how = f" in {blocks:g} interleaved blocks" if blocks else ""
        within = f" (95\u00a0% interval {times(interval[0])} to {times(interval[1])})" if interval else ""
        sentences.append(f"Timed side by side{how}, the final model is {times(ratio)} as fast as the baseline{within}.")
    if interval and interval[0] <= 1 <= interval[1]:
        sentences.append("The interval contains 1, so no difference in speed is shown.")
    elif ratio is not None and ratio < 1:
        sentences.append("Below 1 means that the final model is slower.")
    return [*sentences, *_efficiency_sentences(report)]


def latency_warning(report: Report) -> str:
    """Return a warning about a busy machine, or an empty string."""
    if not (report.baseline.latency_ms.contended or report.final.latency_ms.contended):
        return ""
    warning = "Other work ran on this machine during the measurement: take the milliseconds as upper bounds."
    if report.alone:
        return warning
    clock = " and by CPU time" if told_by_cpu_time(report) else ""
    return f"{warning} The ratio suffers less, since both models were timed in turns{clock}."


def _efficiency_sentences(report: Report) -> Iterator[str]:
    before, after = report.baseline.macs, report.final.macs
    if report.efficiency is not None and not _same_arithmetic(report):
        fall = f", while MACs fell by a factor of {before / after:.2f}" if before and after else ""
        yield (
            f"Efficiency, the speed-up divided by the reduction in MACs, is {report.efficiency:.2f}{fall}. "
            "A value of 1 means that time fell as much as the arithmetic did; below 1, a part of the time lies in "
            "work that was not removed, such as moving memory and small operators."
        )
    if masked(report.final, "params") and report.latency_ratio.median is not None:
        yield (
            "Weights set to zero by masks keep their place in the tensors and are still multiplied, "
            "so they alone bring no speed."
        )


def _same_arithmetic(report: Report) -> bool:
    """Whether both models do the same number of MACs, as under masks: then efficiency says nothing."""
    return report.baseline.macs is not None and report.baseline.macs == report.final.macs


def skipped_by_reason(details: Details) -> list[tuple[str, list[str]]]:
    """Return (reason, layers) in order of first appearance."""
    reasons: dict[str, list[str]] = {}
    for item in details.skipped:
        reasons.setdefault(item.reason, []).append(item.layer)
    return list(reasons.items())


def misaligned(details: Details) -> list[Layer]:
    """Return the layers whose new width is no multiple of the target's."""
    if not details.align:
        return []
    return [
        layer
        for layer in details.layers
        if layer.kind in ALIGNED_KINDS and layer.after != layer.before and layer.after % details.align
    ]


_CHANGED = {
    "weights": "Layers with masks",
    "ranks": "Layers made two of a lower rank",
    "parameters": "Layers with fewer parameters",
}
"""What is said of layers whose rows all have such figures; the others are narrower."""


def plan_facts(details: Details) -> list[tuple[str, str]]:
    """Return (name, value) pairs that describe a plan as a whole."""
    facts = []
    for name, pair in (("Predicted MACs", details.predicted.macs), ("Predicted parameters", details.predicted.params)):
        before, after = pair or (None, None)
        if before and after is not None:
            facts.append((name, f"{count(before)} → {count(after)} ({percent_change(before, after)})"))
    if details.align:
        off = len(misaligned(details))
        state = "all new widths comply" if not off else f"{off} new width{'s' if off > 1 else ''} off the multiple"
        note = f"; {state}" if details.layers and details.align > 1 else ""
        facts.append(("Widths in multiples of", f"{details.align}{note}"))
    if details.layers:
        cut = sum(layer.after < layer.before for layer in details.layers)
        (kind, *others) = {layer.kind for layer in details.layers}
        name = "Layers made narrower" if others else _CHANGED.get(kind, "Layers made narrower")
        facts.append((name, f"{cut} of {len(details.layers)}"))
    if details.blocks_removed:
        facts.append(("Blocks removed", ", ".join(details.blocks_removed)))
    return facts


def environment_rows(environment: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the environment as flat (key, value) pairs; keys without a value are left out."""
    rows: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, Mapping):
            rows += environment_rows(value, f"{prefix}{key}.")
        elif text := _plain(value):
            rows.append((f"{prefix}{key}", text))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(_plain, value)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return three_digits(value) if math.isfinite(value) else ""
    return "" if value is None else str(value)
