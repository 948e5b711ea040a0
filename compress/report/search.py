"""What a search found: its progress, the trade-off between metrics, which decisions mattered, the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress import svg
from compress.report.bars import BarSet, share_chart
from compress.report.plot import Plot, Points
from compress.report.schema import Best, Evaluated, SearchDetails
from compress.units import count, three_digits

_COSTS = ("latency_ms", "macs", "params")
_SHOWN_DECISIONS = 16


@dataclass(frozen=True)
class SearchPart:
    """The section on a search, ready for the template."""

    facts: list[tuple[str, str]]
    progress: str
    trade_offs: list[str]
    importance: BarSet | None
    columns: list[str]
    rows: list[tuple[str, list[str], str]]
    pictures: list[str]


def search_part(search: SearchDetails, pictures: Sequence[str]) -> SearchPart:
    """Return the section; `pictures` are drawings of the best architectures as SVG markup."""
    complete = [entry for entry in search.history if entry.values]
    columns = list(dict.fromkeys(name for best in search.best for name in best.metrics))
    decisions = list(search.importance.items())[:_SHOWN_DECISIONS]
    return SearchPart(
        facts=_facts(search),
        progress=_progress(search, complete) if complete else "",
        trade_offs=_trade_offs(search, complete),
        importance=share_chart("Share of each decision", decisions) if decisions else None,
        columns=columns,
        rows=[_row(best, columns) for best in search.best],
        pictures=list(pictures),
    )


def _facts(search: SearchDetails) -> list[tuple[str, str]]:
    told = {"complete": "evaluated to the end", "known": "of those, known already", "stopped": "stopped early"}
    told |= {"refused": "refused by a constraint before evaluation", "failed": "failed"}
    trials = ", ".join(f"{search.trials[key]} {text}" for key, text in told.items() if search.trials.get(key))
    aims = (f"{way} {name}" for way, name in zip(search.directions, search.objective, strict=False))
    return [
        ("Space", f"{search.space}, {int(search.architectures):,} architectures"),
        ("Strategy", search.strategy),
        ("Objective", "; ".join(aims)),
        ("Trials", trials),
    ]


def _progress(search: SearchDetails, complete: Sequence[Evaluated]) -> str:
    """Return every evaluation's first value, and the best so far as a line."""
    maximise = not search.directions or search.directions[0] == "maximize"
    points: Points = [(float(place), entry.values[0]) for place, entry in enumerate(complete, 1) if entry.values]
    name = search.objective[0] if search.objective else "value"
    plot = Plot(points, name, "evaluation", f"{name} by evaluation")
    line: list[str] = []
    best = points[0][1]
    for x, y in points:
        before, best = best, max(best, y) if maximise else min(best, y)
        for height in (before, best) if before != best else (best,):
            line.append("{:.1f},{:.1f}".format(*plot.place(x, height)))
    for x, y in points:
        across, down = plot.place(x, y)
        svg.add(plot.drawing, "circle", cx=across, cy=down, r=2.5, class_="whole-strong")
    svg.add(plot.drawing, "polyline", points=" ".join(line), class_="line line-part")
    return svg.markup(plot.drawing)


def _trade_offs(search: SearchDetails, complete: Sequence[Evaluated]) -> list[str]:
    """Return the first metric of the objective against each cost that was measured, the best marked."""
    aims = [name for name in ("top1", *search.objective) if any(name in entry.metrics for entry in complete)]
    if not aims:
        return []
    costs = [name for name in _COSTS if sum(name in entry.metrics for entry in complete) > 1 and name != aims[0]]
    return [_scatter(search, complete, aims[0], cost) for cost in costs]


def _scatter(search: SearchDetails, complete: Sequence[Evaluated], aim: str, cost: str) -> str:
    shown = [entry for entry in complete if aim in entry.metrics and cost in entry.metrics]
    chosen = {best.trial for best in search.best}
    points: Points = [(entry.metrics[cost], entry.metrics[aim]) for entry in shown]
    plot = Plot(points, f"{aim} by {cost}", cost, f"{aim} by {cost}", whole_ticks=False)
    for marked in (False, True):
        for entry, point in zip(shown, points, strict=True):
            if (entry.number in chosen) == marked:
                across, down = plot.place(*point)
                style = "part" if marked else "whole-strong"
                title = f"trial {entry.number}: {aim} {three_digits(point[1])}, {cost} {count(point[0])}"
                svg.add(plot.drawing, "circle", title=title, cx=across, cy=down, r=4 if marked else 2.5, class_=style)
    return svg.markup(plot.drawing)


def _row(best: Best, columns: Sequence[str]) -> tuple[str, list[str], str]:
    figures = [_figure(best.metrics[name]) if name in best.metrics else "–" for name in columns]
    choices = ", ".join(f"{name} {choice}" for name, choice in best.choices.items())
    return str(best.trial), figures, choices


def _figure(value: float) -> str:
    return count(value) if abs(value) >= 1000 else three_digits(value)
