"""How well scores rank networks: the table of figures, and the scores over true values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from compress.core import svg
from compress.core.formatting import MISSING, duration, three_digits
from compress.report.details import RankDetails, RankedNetwork
from compress.report.plot import Plot
from compress.report.schema import Proxy, Rank
from compress.report.search_charts import dots, figure
from compress.report.summary import correlation

Row = tuple[str, list[str]]


@dataclass(frozen=True)
class RankPart:
    """The section on a ranking, ready for the template; `rows` and `columns` are of the figures."""

    facts: list[tuple[str, str]]
    notes: list[str]
    columns: list[str]
    rows: list[Row]
    chart: str
    caption: str
    best_columns: list[str]
    best: list[tuple[str, list[str]]]


def rank_part(rank: RankDetails) -> RankPart:
    """Return the section."""
    chart, caption = _chart(rank)
    names = ["true value"] if rank.truth is not None else []
    return RankPart(
        facts=list(_facts(rank)),
        notes=rank.notes,
        columns=[proxy.name for proxy in rank.proxies],
        rows=figure_rows(rank),
        chart=chart,
        caption=caption,
        best_columns=[rank.score, *names, "MACs", "params"],
        best=[(network.name, _cells(network, rank)) for network in rank.best],
    )


def figure_rows(rank: Rank) -> list[Row]:
    """Return the figures, a row each: its name, and its text for each proxy."""
    proxies = rank.proxies
    rows: list[Row] = [
        ("Kendall tau-b", [correlation(proxy.kendall) for proxy in proxies]),
        ("Spearman", [correlation(proxy.spearman) for proxy in proxies]),
        ("Spearman, 95 % interval", [_interval(proxy) for proxy in proxies]),
        ("Pearson", [correlation(proxy.pearson) for proxy in proxies]),
    ]
    for k in dict.fromkeys(k for proxy in proxies for k in proxy.regret):
        rows.append((f"Regret of the top {k}", [figure(proxy.regret[k]) for proxy in proxies]))
    if proxies:
        rows.append((f"Precision of the top {proxies[0].top}", [f"{proxy.precision:.2f}" for proxy in proxies]))
    return rows


def _interval(proxy: Proxy) -> str:
    if proxy.spearman_ci95 is None:
        return MISSING
    low, high = map(correlation, proxy.spearman_ci95)
    return f"{low} to {high}"


def _facts(rank: RankDetails) -> Iterator[tuple[str, str]]:
    yield "Space", rank.space
    speed = f", {rank.scored / rank.seconds:.1f} a second" if rank.scored and rank.seconds else ""
    yield "Networks", f"{rank.architectures} scored ({rank.scored} now, in {duration(rank.seconds)}{speed})"
    yield "Score", f"{rank.score}, {rank.direction}"
    if rank.truth is not None:
        truth = rank.truth
        yield "True values", f"{truth.metric} of {truth.networks} networks, {truth.direction}; {truth.source}"


def _cells(network: RankedNetwork, rank: RankDetails) -> list[str]:
    values = [network.score, *([network.truth] if rank.truth is not None else []), network.macs, network.params]
    return [MISSING if value is None else figure(value) for value in values]


def _chart(rank: RankDetails) -> tuple[str, str]:
    """Return the scatter plot and its caption: score over true value, else over MACs; empty where nothing is left."""
    across: Callable[[RankedNetwork], float | None]
    if rank.truth is not None:
        across, name = (lambda network: network.truth), rank.truth.metric
    else:
        across, name = (lambda network: network.macs), "MACs"
    shown = _placed(rank.points, across)
    if not shown:
        return "", ""
    title = f"{rank.score} of the supernet by {name}"
    plot = Plot([point for _, point in shown], title, name, title, whole_ticks=False)
    best = _placed(rank.best, across)
    dots(plot, [point for _, point in shown], [_title(network, rank) for network, _ in shown])
    dots(plot, [point for _, point in best], [_title(network, rank) for network, _ in best], "part", 4.0)
    what = "true value" if rank.truth is not None else "MACs"
    caption = (
        f"A dot is a network: its score with inherited weights over its {what}. Large: the {len(best)} best scores."
    )
    return svg.markup(plot.drawing), caption


def _placed(
    networks: Sequence[RankedNetwork], across: Callable[[RankedNetwork], float | None]
) -> list[tuple[RankedNetwork, tuple[float, float]]]:
    found = []
    for network in networks:
        x = across(network)
        if x is not None and network.score is not None:
            found.append((network, (x, network.score)))
    return found


def _title(network: RankedNetwork, rank: RankDetails) -> str:
    true = "" if network.truth is None or rank.truth is None else f", {rank.truth.metric} {three_digits(network.truth)}"
    score = MISSING if network.score is None else three_digits(network.score)
    return f"{network.name}: {rank.score} {score}{true}"
