"""Bar charts: the width of each layer before and after, and kept fractions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compress.core import svg
from compress.core.formatting import count
from compress.report.details import Kept, Layer

ROWS_PER_CHART = 32
_WIDTH, _LABEL, _BAR, _ROW, _HEADING = 530, 205, 195, 17, 22
_NAME_CHARACTERS = 31


@dataclass(frozen=True)
class Bar:
    """A row: a pale bar of length `whole` and over it a strong one of length `part`, both in the chart's unit."""

    name: str
    whole: float
    part: float
    text: str
    share: str
    title: str
    heading: str = ""


@dataclass(frozen=True)
class BarSet:
    """Charts that share one scale, each short enough to stand beside another."""

    title: str
    charts: tuple[str, ...]


_TITLES = {
    "channels": "Channels",
    "heads": "Attention heads",
    "head_dims": "Head dimensions",
    "mlp": "MLP hidden units",
    "ranks": "Ranks",
    "parameters": "Parameters",
}


def width_charts(layers: Sequence[Layer]) -> list[BarSet]:
    """Return the widths of all layers before and after: one set, with a scale of its own, per kind of unit."""
    kinds = dict.fromkeys(layer.kind for layer in layers)
    return [
        _bar_set(_TITLES.get(kind, kind), [_width_bar(layer) for layer in layers if layer.kind == kind])
        for kind in kinds
    ]


def kept_chart(title: str, items: Iterable[Kept]) -> BarSet:
    """Return kept fractions, each bar against a full length of 100 %."""
    return _bar_set(title, [_kept_bar(item) for item in items])


def share_chart(title: str, shares: Iterable[tuple[str, float]]) -> BarSet:
    """Return shares of a whole, 0 to 1, each against a full length of 100 %."""
    return _bar_set(title, [Bar(name, 1.0, share, "", f"{100 * share:.0f} %", name) for name, share in shares])


def _width_bar(layer: Layer) -> Bar:
    if layer.after == layer.before:
        text, share = str(layer.before), "whole"
    else:
        text, share = f"{layer.before} → {layer.after}", f"{100 * layer.after / max(layer.before, 1):.0f} %"
    heading = "" if layer.stage is None else _heading(str(layer.stage))
    return Bar(layer.name, layer.before, layer.after, text, share, f"{layer.name}: {text}, {share}", heading)


def _heading(stage: str) -> str:
    return f"stage {stage}" if stage.isdigit() else stage


def _kept_bar(item: Kept) -> Bar:
    fraction = item.kept / item.total if item.total else 0.0
    title = f"{item.name}: {item.kept:,.0f} of {item.total:,.0f} kept"
    return Bar(str(item.name), 1.0, fraction, f"of {count(item.total)}", f"{100 * fraction:.1f} %", title)


def _bar_set(title: str, bars: list[Bar]) -> BarSet:
    longest = max((max(bar.whole, bar.part) for bar in bars), default=0) or 1
    columns = -(-len(bars) // ROWS_PER_CHART)
    if columns == 1 and len(bars) > ROWS_PER_CHART // 2:
        columns = 2
    size = -(-len(bars) // columns)
    parts = [bars[start : start + size] for start in range(0, len(bars), size)]
    return BarSet(title, tuple(_draw(part, longest, title) for part in parts))


def _draw(bars: Sequence[Bar], longest: float, label: str) -> str:
    headings = _changes([bar.heading for bar in bars])
    drawing = svg.canvas(_WIDTH, _ROW * len(bars) + _HEADING * len(headings) + 4, label)
    y = 2.0
    for index, bar in enumerate(bars):
        if index in headings:
            svg.add(drawing, "text", bar.heading, x=0, y=y + 15, class_="heading")
            svg.add(drawing, "line", x1=_LABEL, x2=_WIDTH, y1=y + 11, y2=y + 11, class_="grid")
            y += _HEADING
        _draw_row(drawing, bar, y, _BAR / longest)
        y += _ROW
    return svg.markup(drawing)


def _changes(headings: Sequence[str]) -> set[int]:
    """Return the indices at which a new, non-empty heading starts."""
    return {i for i, heading in enumerate(headings) if heading and (i == 0 or headings[i - 1] != heading)}


def _draw_row(drawing: svg.Element, bar: Bar, y: float, scale: float) -> None:
    row = svg.add(drawing, "g", title=bar.title)
    middle = y + _ROW / 2
    name = svg.elided(bar.name, _NAME_CHARACTERS)
    svg.add(row, "text", name, x=_LABEL - 10, y=middle + 4, text_anchor="end", class_="name")
    svg.add(row, "rect", x=_LABEL, y=y + 2, width=bar.whole * scale, height=_ROW - 4, rx=2, class_="whole")
    if bar.part:
        svg.add(row, "rect", x=_LABEL, y=y + 5, width=max(bar.part * scale, 1.0), height=_ROW - 10, rx=1, class_="part")
    style = "value muted" if bar.part == bar.whole else "value"
    svg.add(row, "text", bar.text, x=_LABEL + _BAR + 10, y=middle + 4, class_=style)
    svg.add(row, "text", bar.share, x=_WIDTH, y=middle + 4, text_anchor="end", class_=style)
