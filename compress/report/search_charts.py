"""Charts of a search: its progress, the hypervolume, and one metric against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from compress.core import svg
from compress.core.formatting import count, three_digits
from compress.report.details import Evaluated, SearchDetails
from compress.report.plot import Plot, Points

if TYPE_CHECKING:
    from evaluators.tasks import Metric

_COSTS = ("latency_ms", "macs", "params")
_WAYS = dict.fromkeys(_COSTS, "minimize")


def progress_chart(search: SearchDetails, complete: Sequence[Evaluated]) -> str:
    """Return every evaluation's first value, and the best so far as a line."""
    maximise = not search.directions or search.directions[0] == "maximize"
    points: Points = [(float(place), entry.values[0]) for place, entry in enumerate(complete, 1) if entry.values]
    name = search.objective[0] if search.objective else "value"
    plot = Plot(points, name, "evaluation", f"{name} by evaluation")
    best = points[0][1]
    line: Points = []
    for x, y in points:
        best = max(best, y) if maximise else min(best, y)
        line.append((x, best))
    dots(plot, points)
    steps(plot, line)
    return svg.markup(plot.drawing)


def hypervolume_chart(course: Sequence[float]) -> str:
    """Return the hypervolume after each evaluation as a line."""
    points: Points = [(float(place), value) for place, value in enumerate(course, 1)]
    plot = Plot(points, "hypervolume", "evaluation", "hypervolume by evaluation")
    steps(plot, points)
    return svg.markup(plot.drawing)


def trade_offs(
    search: SearchDetails, complete: Sequence[Evaluated], metrics: Sequence[Metric]
) -> list[tuple[str, str, str]]:
    """Return (metric, other metric, chart) for the first metric of the objective against the others and each cost.

    `metrics` are the task's; the main one stands in where the objective is no metric that was measured.
    """
    measured = [
        name
        for name in dict.fromkeys((*search.objective, *(metric.name for metric in metrics[:1]), *_COSTS))
        if sum(name in entry.metrics for entry in complete) > 1
    ]
    if not measured:
        return []
    aim, *others = measured
    wanted = [name for name in others if name in search.objective or name in _COSTS]
    ways = {**_WAYS, **{metric.name: metric.direction for metric in metrics}}
    ways |= dict(zip(search.objective, search.directions, strict=False))
    return [(aim, other, _scatter(search, complete, aim, other, ways)) for other in wanted]


def _scatter(search: SearchDetails, complete: Sequence[Evaluated], aim: str, cost: str, ways: Mapping[str, str]) -> str:
    shown = [entry for entry in complete if aim in entry.metrics and cost in entry.metrics]
    chosen = {best.trial for best in search.best}
    points: Points = [(entry.metrics[cost], entry.metrics[aim]) for entry in shown]
    plot = Plot(points, f"{aim} by {cost}", cost, f"{aim} by {cost}", whole_ticks=False)
    titles = [
        f"trial {entry.number}: {aim} {figure(y)}, {cost} {figure(x)}"
        for entry, (x, y) in zip(shown, points, strict=True)
    ]
    dots(plot, points, titles)
    steps(plot, front(points, _sign(ways, cost), _sign(ways, aim)))
    kept = [place for place, entry in enumerate(shown) if entry.number in chosen]
    dots(plot, [points[place] for place in kept], [titles[place] for place in kept], "part", 4.0)
    return svg.markup(plot.drawing)


def _sign(ways: Mapping[str, str], name: str) -> int:
    """Return 1 for a metric that should be large, as one that is not known, -1 for one that should be small."""
    return -1 if ways.get(name) == "minimize" else 1


def front(points: Points, across: int, up: int) -> Points:
    """Return the points that no other beats in both, the best across first; 1: larger is better, -1: smaller."""
    front: Points = []
    for x, y in sorted(points, key=lambda point: (-across * point[0], -up * point[1])):
        if not front or up * y > up * front[-1][1]:
            front.append((x, y))
    return front


def dots(
    plot: Plot, points: Points, titles: Sequence[str | None] = (), style: str = "whole-strong", r: float = 2.5
) -> None:
    """Draw a dot at each point, with what a pointer on it reads."""
    for point, title in zip(points, titles or [None] * len(points), strict=True):
        across, down = plot.place(*point)
        svg.add(plot.drawing, "circle", title=title, cx=across, cy=down, r=r, class_=style)


def steps(plot: Plot, points: Points) -> None:
    """Draw a line that keeps each point's height up to the next."""
    corners = [corner for (_, y), (x, after) in pairwise(points) for corner in ((x, y), (x, after))]
    places = (plot.place(*corner) for corner in [points[0], *corners])
    line = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
    svg.add(plot.drawing, "polyline", points=line, class_="line line-part")


def figure(value: float) -> str:
    """Return a metric's value with three digits, and with a prefix from a thousand on."""
    return count(value) if abs(value) >= 1000 else three_digits(value)
