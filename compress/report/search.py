"""What a search found: its progress, the trade-off between metrics, which decisions mattered, the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compress.report.bars import BarSet, share_chart
from compress.report.details import Best, Evaluated, SearchDetails
from compress.report.schema import Report
from compress.report.search_charts import figure, hypervolume_chart, progress_chart, trade_offs

_SHOWN_DECISIONS = 16
_SHOWN_PICTURES = 12


@dataclass(frozen=True)
class SearchPart:
    """The section on a search, ready for the template: charts and pictures with their captions."""

    facts: list[tuple[str, str]]
    charts: list[tuple[str, str]]
    importance: BarSet | None
    columns: list[str]
    rows: list[tuple[str, list[str], str]]
    pictures: list[tuple[str, str]]


def search_part(search: SearchDetails, pictures: Sequence[str], report: Report) -> SearchPart:
    """Return the section; `pictures` are drawings of the best architectures as SVG markup, of which it shows a few."""
    complete = [entry for entry in search.history if entry.values]
    columns = list(dict.fromkeys(name for best in search.best for name in best.metrics))
    decisions = list(search.importance.items())[:_SHOWN_DECISIONS]
    drawn = zip(search.best, pictures[:_SHOWN_PICTURES], strict=False)
    return SearchPart(
        facts=_facts(search),
        charts=list(_charts(search, complete, report)),
        importance=share_chart("Share of each decision", decisions) if decisions else None,
        columns=columns,
        rows=[_row(best, columns) for best in search.best],
        pictures=[(f"Trial {best.trial}", picture) for best, picture in drawn],
    )


def _facts(search: SearchDetails) -> list[tuple[str, str]]:
    told = {"complete": "evaluated to the end", "known": "of those known already"}
    told |= {"broken": "broke a constraint once measured", "stopped": "stopped early"}
    told |= {"refused": "refused by a constraint before evaluation", "left_out": "left out, since something was raised"}
    told |= {"failed": "failed"}
    trials = ", ".join(f"{search.trials[key]} {text}" for key, text in told.items() if search.trials.get(key))
    aims = (f"{way} {name}" for way, name in zip(search.directions, search.objective, strict=False))
    facts = [
        ("Space", f"{search.space}, {int(search.architectures):,} architectures"),
        ("Strategy", search.strategy),
        ("Objective", "; ".join(aims)),
        ("Trials", trials),
    ]
    if search.hypervolume is not None:
        facts.append(("Hypervolume", f"{figure(search.hypervolume.course[-1])}, up to {_reference(search)}"))
    return facts


def _reference(search: SearchDetails) -> str:
    assert search.hypervolume is not None
    named = zip(search.objective, search.hypervolume.reference, strict=False)
    return ", ".join(f"{name} {figure(value)}" for name, value in named)


def _charts(search: SearchDetails, complete: Sequence[Evaluated], report: Report) -> Iterator[tuple[str, str]]:
    if not complete:
        return
    yield "Every evaluation, and the best so far.", progress_chart(search, complete)
    if search.hypervolume is not None:
        yield (
            f"What the front dominates after each evaluation, up to the worst of each seen: {_reference(search)}.",
            hypervolume_chart(search.hypervolume.course),
        )
    for aim, cost, chart in trade_offs(search, complete, report.metrics):
        yield f"Every evaluation; the large dots were kept. Line: the best {aim} at each {cost}.", chart


def _row(best: Best, columns: Sequence[str]) -> tuple[str, list[str], str]:
    figures = [figure(best.metrics[name]) if name in best.metrics else "–" for name in columns]
    choices = ", ".join(f"{name} {choice}" for name, choice in best.choices.items())
    return str(best.trial), figures, choices
