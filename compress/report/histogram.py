"""The distribution of measured latencies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.core import svg
from compress.core.formatting import milliseconds
from compress.report.details import Samples
from compress.report.schema import Latency

_WIDTH, _LEFT, _RIGHT, _PANEL, _GAP, _BINS = 920, 118, 24, 110, 44, 140
_QUANTILES = (10, 50, 90, 99)
_UNKNOWN = Latency()


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    def x(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


@dataclass(frozen=True)
class _Row:
    """A model: sampled runs (ms), and what is known of all of them."""

    name: str
    style: str
    values: NDArray[np.float64]
    times: Latency

    @property
    def quantiles(self) -> tuple[float, float, float, float]:
        """p10, p50, p90, p99."""
        found = zip(_QUANTILES, (self.times.p10, self.times.p50, self.times.p90, self.times.p99), strict=True)
        p10, p50, p90, p99 = (float(np.percentile(self.values, q) if known is None else known) for q, known in found)
        return p10, p50, p90, p99

    @property
    def counted(self) -> str:
        """How many runs are drawn, and of how many."""
        runs = self.times.runs or 0
        return f"{len(self.values)} of {runs:g} runs" if runs > len(self.values) else f"{len(self.values)} runs"


def latency_chart(samples: Samples, baseline: Latency = _UNKNOWN, final: Latency = _UNKNOWN) -> str:
    """Return the latency histograms, one above the other on one axis of milliseconds; empty without samples.

    What is marked are the percentiles of all runs, as tables have them, where they are known. The axis ends a little
    past the slower 99th percentile of what is drawn: a single stall must not squeeze everything else.
    """
    name = "Final" if samples.baseline_ms else "Model"
    given = (("Baseline", "whole-strong", samples.baseline_ms, baseline), (name, "part", samples.final_ms, final))
    rows = [_Row(name, style, np.asarray(values), times) for name, style, values, times in given if values]
    if not rows:
        return ""
    axis = _axis([row.values for row in rows])
    height = len(rows) * (_PANEL + _GAP) + 40
    drawing = svg.canvas(_WIDTH, height, "Distribution of the measured latencies")
    _draw_grid(drawing, axis, height)
    for index, row in enumerate(rows):
        _draw_panel(drawing, axis, row, 18 + index * (_PANEL + _GAP))
    return svg.markup(drawing)


def _axis(rows: list[NDArray[np.float64]]) -> _Axis:
    low = min(float(values.min()) for values in rows)
    high = max(float(np.percentile(values, 99)) for values in rows)
    margin = 0.05 * (high - low) or 0.05 * high or 1.0
    return _Axis(max(0.0, low - margin), high + margin)


def _draw_grid(drawing: svg.Element, axis: _Axis, height: float) -> None:
    bottom = height - 34
    for tick in svg.ticks(axis.low, axis.high, 8):
        svg.add(drawing, "line", x1=axis.x(tick), x2=axis.x(tick), y1=10, y2=bottom, class_="grid")
        svg.add(drawing, "text", f"{tick:g}", x=axis.x(tick), y=bottom + 16, text_anchor="middle", class_="tick")
    svg.add(drawing, "text", "ms per batch", x=_WIDTH - _RIGHT, y=bottom + 31, text_anchor="end", class_="tick")


def _draw_panel(drawing: svg.Element, axis: _Axis, row: _Row, top: float) -> None:
    base = top + _PANEL
    panel = svg.add(drawing, "g", title=f"{row.name}: {row.counted}")
    svg.add(panel, "path", d=_outline(axis, row.values, base), class_=row.style)
    svg.add(panel, "line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=base, y2=base, class_="axis")
    svg.add(panel, "text", row.name, x=_LEFT - 12, y=base - 16, text_anchor="end", class_="series")
    svg.add(panel, "text", row.counted, x=_LEFT - 12, y=base - 2, text_anchor="end", class_="tick")
    _draw_quantiles(panel, axis, row, top, base)


def _outline(axis: _Axis, values: NDArray[np.float64], base: float) -> str:
    """Return the stepped outline of a histogram whose highest bin fills the panel."""
    counts, edges = np.histogram(values[values <= axis.high], bins=_BINS, range=(axis.low, axis.high))
    path = [f"M{axis.x(axis.low):.1f} {base:.1f}"]
    for share, left, right in zip(counts / max(counts.max(), 1), edges[:-1], edges[1:], strict=True):
        y = base - share * (_PANEL - 8)
        path.append(f"L{axis.x(left):.1f} {y:.1f}L{axis.x(right):.1f} {y:.1f}")
    return "".join([*path, f"L{axis.x(axis.high):.1f} {base:.1f}Z"])


def _draw_quantiles(panel: svg.Element, axis: _Axis, row: _Row, top: float, base: float) -> None:
    """Mark p10 to p90 (thick), p99 (thin), the median, and how many of the drawn runs lie beyond the axis."""
    p10, p50, p90, p99 = row.quantiles
    width = max(axis.x(p90) - axis.x(p10), 1.0)
    svg.add(panel, "rect", x=axis.x(p10), y=base + 5, width=width, height=6, class_=row.style)
    svg.add(panel, "line", x1=axis.x(p90), x2=axis.x(p99), y1=base + 8, y2=base + 8, class_="whisker")
    svg.add(panel, "line", x1=axis.x(p99), x2=axis.x(p99), y1=base + 4, y2=base + 12, class_="whisker")
    svg.add(panel, "line", x1=axis.x(p50), x2=axis.x(p50), y1=top, y2=base + 13, class_="median")
    right = axis.x(p50) > _WIDTH - 200
    x, anchor = (axis.x(p50) - 6, "end") if right else (axis.x(p50) + 6, "start")
    svg.add(panel, "text", f"p50 {milliseconds(p50)}", x=x, y=top + 8, text_anchor=anchor, class_="mark")
    beyond = int((row.values > axis.high).sum())
    if beyond:
        told = f"{beyond} slower, up to {milliseconds(float(row.values.max()))} →"
        svg.add(panel, "text", told, x=_WIDTH - _RIGHT, y=base + 25, text_anchor="end", class_="tick halo")
