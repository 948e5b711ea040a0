"""The whole way on one page: what each stage made of the model, beside networks that were designed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.core.formatting import MISSING, count, duration, exact, file_size, percent_change, three_digits, times
from compress.report.schema import Metrics, Report, StageReport
from compress.report.summary import masked, told_by_cpu_time
from compress.report.tables import Cell

if TYPE_CHECKING:
    from evaluators.tasks import Metric

BASELINE = "dense"
"""The act that leaves the model which the others are compared with; what is measured before is of other models."""


@dataclass(frozen=True)
class Column:
    """A figure of the models: its title, where it is found, how it is shown, and how a change of it is."""

    title: str
    of: Callable[[StageReport], float | None]
    show: Callable[[float], str]
    change: Callable[[float, float], str]


@dataclass(frozen=True)
class Row:
    """A stage, or a network beside the run's; every figure with its change since the stage before, or nothing.

    A stage that found nothing new of the model has no figures.
    """

    name: str
    seconds: str
    figures: list[tuple[Cell, str]]


@dataclass(frozen=True)
class Story:
    """The section, ready for the template."""

    columns: list[str]
    stages: list[Row]
    references: list[Row]
    clock: str


def story_of(report: Report) -> Story:
    """Return the stages in order, and the networks beside them; a column that none has is left out."""
    entries = [*report.stages, *report.references]
    columns = [column for column in _columns(report) if any(column.of(entry) is not None for entry in entries)]
    stages: list[Row] = []
    before = StageReport(name="")
    for entry in report.stages:
        before = before if entry.name != BASELINE else StageReport(name="")
        stages.append(_row(entry, before, columns))
        before = _known(before, entry)
    return Story(
        columns=[column.title for column in columns],
        stages=stages,
        references=[_row(entry, StageReport(name=""), columns) for entry in report.references],
        clock="CPU time" if told_by_cpu_time(report) else "median",
    )


def latency_of(report: Report) -> Callable[[Metrics], float | None]:
    """Return what gives a model's milliseconds: of CPU time where the run's ratio is of CPU times, else the median."""
    if told_by_cpu_time(report):
        return lambda metrics: metrics.latency_ms.cpu_p50
    return lambda metrics: metrics.latency_ms.p50


def _columns(report: Report) -> Iterator[Column]:
    for metric in report.metrics:
        if metric is report.main or metric.name == "loss":
            yield Column(metric.heading, _value(metric.name), metric.show, _points(metric))
    for name, title in (("macs", "MACs"), ("params", "Parameters")):
        yield Column(title, _field(name), count, _share)
        if masked(report.final, name):
            yield Column(
                f"Nonzero {title if name == 'macs' else title.lower()}", _field(f"nonzero_{name}"), count, _share
            )
    yield Column("ONNX file", _field("onnx_bytes"), file_size, _share)
    latency = latency_of(report)
    yield Column("Latency, ms", lambda entry: latency(entry.figures), three_digits, _share)
    yield Column("As fast", lambda entry: entry.latency_ratio.median, times, lambda before, after: "")


def _value(name: str) -> Callable[[StageReport], float | None]:
    return lambda entry: entry.figures.value(name)


def _field(name: str) -> Callable[[StageReport], float | None]:
    return lambda entry: getattr(entry.figures, name)


def _points(metric: Metric) -> Callable[[float, float], str]:
    return metric.show_change


def _share(before: float, after: float) -> str:
    return percent_change(before, after) if before else ""


def _row(entry: StageReport, before: StageReport, columns: list[Column]) -> Row:
    figures = []
    pairs = [(column.of(before), column.of(entry)) for column in columns]
    new = any(now is not None and now != was for was, now in pairs)
    for column, (was, now) in zip(columns, pairs, strict=True):
        if not new:
            figures.append((Cell(""), ""))
            continue
        cell = Cell(MISSING) if now is None else Cell(column.show(now), exact(now))
        changed = was is not None and now is not None and was != now
        figures.append((cell, column.change(was, now) if changed else ""))  # type: ignore[arg-type]
    return Row(entry.name, MISSING if entry.seconds is None else duration(entry.seconds), figures)


def _known(before: StageReport, entry: StageReport) -> StageReport:
    """Return the last known figures after `entry`."""
    metrics = {**before.metrics, **{key: value for key, value in entry.metrics.items() if value is not None}}
    return StageReport(name=entry.name, metrics=metrics, latency_ratio=entry.latency_ratio.model_dump())
