"""Training curves out of the events of log.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.core import svg
from compress.report.plot import Plot, Points

if TYPE_CHECKING:
    from evaluators.tasks import Metric

_STYLES = {"training": "line-whole", "test": "line-part"}


@dataclass(frozen=True)
class CurveSet:
    """The charts of one stage."""

    stage: str
    charts: tuple[str, ...]


def training_curves(events: Iterable[Mapping[str, Any]], main: Metric) -> list[CurveSet]:
    """Return a set of charts (the loss, the `main` metric) per stage that trained, named like its directory.

    Of an epoch run twice the last counts. An event of an epoch tells its `stage` and that stage's `number` in the run.
    """
    stages: dict[str, dict[float, Mapping[str, Any]]] = {}
    for event in events:
        epoch, number = _number(event.get("epoch")), _number(event.get("number"))
        if event.get("event") == "epoch" and epoch is not None and number is not None:
            stages.setdefault(f"{number:02.0f}-{event.get('stage')}", {})[epoch] = event
    sets = [CurveSet(stage, tuple(_charts(stage, epochs, main))) for stage, epochs in stages.items()]
    return [found for found in sets if found.charts]


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _charts(stage: str, epochs: Mapping[float, Mapping[str, Any]], main: Metric) -> Iterable[str]:
    charts = {"loss": {"training": "loss", "test": "test_loss"}}  # per chart its lines, and their keys in the events
    if main.name != "loss":
        charts[f"{main.label}, {main.unit}" if main.unit else main.label] = {"test": main.name}
    for title, lines in charts.items():
        found = {label: _points(epochs, key) for label, key in lines.items()}
        drawn = {label: points for label, points in found.items() if points}
        if drawn:
            yield _draw(title, drawn, f"{stage}: {title} by epoch")


def _points(epochs: Mapping[float, Mapping[str, Any]], key: str) -> Points:
    values = ((epoch, _number(epochs[epoch].get(key))) for epoch in sorted(epochs))
    return [(epoch, value) for epoch, value in values if value is not None]


def _draw(title: str, lines: Mapping[str, Points], label: str) -> str:
    plot = Plot([point for points in lines.values() for point in points], title, "epoch", label)
    ends = {name: [plot.place(x, y) for x, y in points] for name, points in lines.items()}
    for name, points in ends.items():
        _draw_line(plot.drawing, name, points)
    _draw_names(plot.drawing, {name: points[-1] for name, points in ends.items()})
    return svg.markup(plot.drawing)


def _draw_line(drawing: svg.Element, name: str, points: Points) -> None:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    svg.add(drawing, "polyline", points=path, class_=f"line {_STYLES[name]}")
    svg.add(drawing, "circle", cx=points[-1][0], cy=points[-1][1], r=3, class_=f"dot {_STYLES[name]}")


def _draw_names(drawing: svg.Element, ends: Mapping[str, tuple[float, float]]) -> None:
    """Write each line's name at its end, moved apart where they would touch."""
    lowest = -math.inf
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        lowest = max(y + 4, lowest + 13)
        svg.add(drawing, "text", name, x=x + 7, y=lowest, class_="tick")
