"""The family that a sorted training leaves: how good its members are over what they cost, and which are the front."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compress.core import svg
from compress.core.formatting import MISSING
from compress.picking.budget import COSTS
from compress.picking.members import Member
from compress.report.plot import Plot
from compress.report.schema import Metrics, Report
from compress.report.search_charts import dots, figure, front, steps
from compress.sorted.family import Family


@dataclass(frozen=True)
class FamilyPart:
    """The section on a family, ready for the template; `rows` are of the front."""

    facts: list[tuple[str, str]]
    charts: list[tuple[str, str]]
    columns: list[str]
    rows: list[tuple[str, list[str], str]]


def family_part(family: Family, report: Report) -> FamilyPart:
    """Return the section; the networks that the run had before the family are drawn beside it."""
    members = [family.members[place] for place in family.front]
    main = next((each.title for each in report.metrics if each.name == family.main.name), family.main.name)
    return FamilyPart(
        facts=list(_facts(family, main)),
        charts=[chart for key in ("macs", "latency", "params") for chart in _chart(family, report, key, main)],
        columns=[main, *(cost.title for cost in COSTS.values())],
        rows=[_row(family, place, member) for place, member in zip(family.front, members, strict=True)],
    )


def _facts(family: Family, main: str) -> Iterator[tuple[str, str]]:
    timed = sum(member.latency_ms is not None for member in family.members)
    yield "Members", f"{len(family.members)}, of them {len(family.front)} on the front and {timed} timed"
    name = family.main.name
    whole = family.full.metrics.get(name)
    known = [value for member in family.members if (value := member.metrics.get(name)) is not None]
    if whole is not None and known:
        mean = sum(known) / len(known)
        share = f", {mean / whole:.1%} of the full network's" if whole and family.main.direction == "maximize" else ""
        yield main, f"full network {figure(whole)}, mean of the members {figure(mean)}{share}"


def _chart(family: Family, report: Report, key: str, main: str) -> Iterator[tuple[str, str]]:
    """Yield the members by one cost as (caption, chart); nothing where it is known of fewer than two.

    `main` is what the chart calls the metric that members are chosen by.
    """
    name, cost = family.main.name, COSTS[key]
    shown = {place: at for place, member in enumerate(family.members) if (at := _point(member, key, name)) is not None}
    if len(shown) < 2:
        return
    beside = {at: title for title, metrics in _before(report) if (at := _of(metrics, key, name)) is not None}
    title, points = f"{main} by {cost.title}", list(shown.values())
    plot = Plot([*points, *beside], title, _across(key), title, whole_ticks=False)
    costs = {place: family.members[place].shown(key) for place in shown}
    dots(plot, points, [f"member {place}: {main} {figure(y)}, {costs[place]}" for place, (_, y) in shown.items()])
    steps(plot, front(points, -1, 1 if family.main.direction == "maximize" else -1))
    dots(plot, [shown[place] for place in family.front if place in shown], style="part", r=4.0)
    dots(plot, list(beside), list(beside.values()), "beside", 4.0)
    others = " Rings: the run's networks before it." if beside else ""
    yield f"A dot is a member; line: the best within each limit; large: the front.{others}", svg.markup(plot.drawing)


def _across(key: str) -> str:
    return "latency, ms" if key == "latency" else COSTS[key].title


def _point(member: Member, key: str, name: str) -> tuple[float, float] | None:
    cost, value = member.cost(key), member.metrics.get(name)
    return None if cost is None or value is None else (float(cost), value)


def _before(report: Report) -> Iterator[tuple[str, Metrics]]:
    """Yield the networks that the run had before the family, such as the dense and pruned ones."""
    yield "baseline", report.baseline
    for stage in report.stages:
        if stage.name == "sort":
            return
        yield f"after {stage.name}", stage.figures


def _of(metrics: Metrics, key: str, name: str) -> tuple[float, float] | None:
    cost = metrics.latency_ms.told if key == "latency" else getattr(metrics, key)
    value = metrics.value(name)
    return None if cost is None or value is None else (float(cost), value)


def _row(family: Family, place: int, member: Member) -> tuple[str, list[str], str]:
    value = member.metrics.get(family.main.name)
    figures = [MISSING if value is None else figure(value)]
    figures += [member.shown(key) or MISSING for key in COSTS]
    choices = ", ".join(f"{name} {choice}" for name, choice in member.arch.items())
    return f"{place}{' (full)' if member.full else ''}", figures, choices
