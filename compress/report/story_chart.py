"""Every model of a run on one chart: how good it is over how long it takes, beside networks designed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compress.core import svg
from compress.core.formatting import three_digits
from compress.report.details import SearchDetails
from compress.report.plot import Plot, Points
from compress.report.schema import Report, StageReport
from compress.report.search_charts import dots, figure, front, steps
from compress.report.story import BASELINE, latency_of
from compress.report.summary import told_by_cpu_time
from compress.sorted.family import Family

_SIZE = (1040.0, 400.0)
_LINE = 13.0
"""Height of a label."""

_Mark = tuple[float, float, str]
"""Where a dot is in the drawing, and what is written beside it."""


@dataclass(frozen=True)
class _Model:
    """A point of the chart; `name` is written beside it, and for all of them a pointer reads `title`."""

    x: float
    y: float
    name: str
    title: str


@dataclass(frozen=True)
class StoryChart:
    """The chart and what it shows."""

    caption: str
    chart: str


def story_chart(report: Report, family: Family | None, searches: Sequence[SearchDetails]) -> StoryChart | None:
    """Return the chart; None where latency is known of fewer than three of the run's models and those beside them."""
    way, beside = list(_way(report)), list(_models(report, report.references))
    if len(way) + len(beside) < 3:
        return None
    members = [] if family is None else list(_members(family))
    trials = [point for search in searches for point in _trials(search, report.main.name)]
    up = 1 if report.main.direction == "maximize" else -1
    shown = [*way, *beside, *members]
    lowest = _least_shown(way, beside, up)
    axis = f"latency, ms{' of CPU time' if told_by_cpu_time(report) else ''}"
    everything = [*shown, *trials]
    inside = [(model.x, _clipped(model.y, lowest, up)) for model in everything]
    title = report.main.heading
    plot = Plot(inside, title, axis, f"{title} by latency of every model", whole_ticks=False, size=_SIZE)
    place = dict(zip(everything, inside, strict=True))
    dots(plot, [place[each] for each in trials], [each.title for each in trials], "whole", 2.5)
    dots(plot, [place[each] for each in members], [each.title for each in members], "whole-strong", 3.0)
    steps(plot, front([place[each] for each in shown], -1, up))
    _arrows(plot, [place[each] for each in way])
    dots(plot, [place[each] for each in way], [each.title for each in way], "part", 5.0)
    dots(plot, [place[each] for each in beside], [each.title for each in beside], "beside", 5.0)
    labels: list[_Mark] = []
    for models in (way, beside):
        labels += _together([(*plot.place(*place[each]), _label(each, lowest, up)) for each in models])
    _write(plot, labels)
    cut = any(at[1] != model.y for model, at in place.items())
    return StoryChart(" ".join(_caption(members, beside, trials, cut)), svg.markup(plot.drawing))


def _caption(members: list[_Model], beside: list[_Model], trials: list[_Model], cut: bool) -> Iterator[str]:
    yield "Blue: the run's model, stage by stage, along the dashed line; full line: the best within each latency."
    if beside:
        yield "Rings: networks designed by hand, trained by the same settings and timed in the same session."
    if members:
        yield "Dark dots: members of the family, timed when it was made."
    if trials:
        yield (
            "Pale dots: candidates of the search, judged on held-out images by the weights that they had then, and "
            "timed during the search."
        )
    if cut:
        yield "What is worse than the frame shows is drawn on its edge, with its figure."


def _way(report: Report) -> Iterator[_Model]:
    """Yield the run's models in order; a stage that left the model as it was adds none."""
    names = [entry.name for entry in report.stages]
    start = names.index(BASELINE) if BASELINE in names else 0
    last: _Model | None = None
    for model in _models(report, report.stages[start:]):
        if last is None or (model.x, model.y) != (last.x, last.y):
            yield model
        last = model


def _models(report: Report, entries: Sequence[StageReport]) -> Iterator[_Model]:
    latency, main = latency_of(report), report.main.name
    for entry in entries:
        x, y = latency(entry.figures), entry.figures.value(main)
        if x is not None and y is not None:
            yield _Model(x, y, entry.name, f"{entry.name}: {report.main.show(y)}, {three_digits(x)} ms")


def _members(family: Family) -> Iterator[_Model]:
    for place, member in enumerate(family.members):
        x, y = member.cost("latency"), member.metrics.get(family.main.name)
        if x is not None and y is not None:
            yield _Model(x, y, "", f"member {place}: {figure(y)}, {three_digits(x)} ms")


def _trials(search: SearchDetails, main: str) -> Iterator[_Model]:
    for entry in search.history:
        if "latency_ms" in entry.metrics and main in entry.metrics:
            x, y = entry.metrics["latency_ms"], entry.metrics[main]
            yield _Model(x, y, "", f"trial {entry.number}: {figure(y)}, {three_digits(x)} ms")


def _least_shown(way: Sequence[_Model], beside: Sequence[_Model], up: int) -> float:
    """Return where the frame ends at the bad end: models that are not trained yet would leave no room for the others.

    As far below the worse of the first and the last model and the networks beside them as the best is above it, at
    least a tenth of its value.
    """
    settled = [model.y for model in (*way[:1], *way[-1:], *beside)]
    worst, best = (min(settled), max(settled)) if up > 0 else (max(settled), min(settled))
    return worst - up * max(abs(best - worst), 0.1 * abs(best))


def _clipped(value: float, lowest: float, up: int) -> float:
    return max(value, lowest) if up > 0 else min(value, lowest)


def _label(model: _Model, lowest: float, up: int) -> str:
    """Return a model's name, with its figure where it is drawn on the edge of the frame."""
    return model.name if _clipped(model.y, lowest, up) == model.y else f"{model.name} ({figure(model.y)})"


def _arrows(plot: Plot, points: Points) -> None:
    """Draw the way from model to model."""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (plot.place(*point) for point in points))
    svg.add(plot.drawing, "polyline", points=line, class_="line line-whole")


def _together(marks: Sequence[_Mark]) -> list[_Mark]:
    """Return labels, one for dots that lie on one another: names in the order of the models, right of the last dot."""
    found: list[_Mark] = []
    for x, y, name in marks:
        near = next((at for at, mark in enumerate(found) if math.hypot(x - mark[0], y - mark[1]) < _LINE), None)
        if near is None:
            found.append((x, y, name))
        else:
            found[near] = max(x, found[near][0]), found[near][1], f"{found[near][2]}, {name}"
    return found


def _write(plot: Plot, marks: Sequence[_Mark]) -> None:
    """Write each label to the right of its dot, lower where it would lie on another one."""
    taken: list[tuple[float, float, float]] = []  # left, right, baseline
    for x, y, name in sorted(marks, key=lambda mark: mark[1]):
        left, base = x + 9, y + 4
        right = left + svg.text_width(name, 12)
        if right > plot.width:
            left, right = x - 9 - svg.text_width(name, 12), x - 9
        for a, b, other in sorted(taken, key=lambda item: item[2]):
            if left < b and a < right and math.fabs(base - other) < _LINE:
                base = other + _LINE
        taken.append((left, right, base))
        svg.add(plot.drawing, "text", name, x=left, y=base, class_="mark")
