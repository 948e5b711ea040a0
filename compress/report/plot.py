"""The frame of a chart with two numeric axes."""

from __future__ import annotations

from collections.abc import Sequence

from compress.core import svg
from compress.core.formatting import prefix_of

Points = list[tuple[float, float]]
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 510, 220, 46, 58, 14, 34


class Plot:
    """An empty chart wide enough for `points`, with ticks, to be drawn into at `place(x, y)`."""

    def __init__(
        self,
        points: Sequence[tuple[float, float]],
        title: str,
        across: str,
        label: str,
        whole_ticks: bool = True,
        size: tuple[float, float] = (_WIDTH, _HEIGHT),
    ) -> None:
        """Draw the frame.

        Args:
            points: everything that will be drawn.
            title: of the vertical axis, shown at the top.
            across: name of the horizontal axis.
            label: what the chart reads to who cannot see it.
            whole_ticks: mark only whole numbers on the horizontal axis.
            size: width and height of the drawing.
        """
        self.width, self.height = size
        self._x = _range([x for x, _ in points], 0.0 if whole_ticks else 0.05)
        self._y = _range([y for _, y in points], 0.06)
        self.drawing = svg.canvas(self.width, self.height, label)
        for tick in svg.ticks(*self._y, 5):
            y = self.place(self._x[0], tick)[1]
            svg.add(self.drawing, "line", x1=_LEFT, x2=self.width - _RIGHT, y1=y, y2=y, class_="grid")
            svg.add(self.drawing, "text", _tick(tick), x=_LEFT - 8, y=y + 4, text_anchor="end", class_="tick")
        foot = self.height - _BOTTOM + 16
        for tick in (value for value in svg.ticks(*self._x, 6) if not whole_ticks or value == int(value)):
            x = self.place(tick, self._y[0])[0]
            svg.add(self.drawing, "text", _tick(tick), x=x, y=foot, text_anchor="middle", class_="tick")
        svg.add(
            self.drawing, "text", across, x=self.width - _RIGHT, y=self.height - 4, text_anchor="end", class_="tick"
        )
        svg.add(self.drawing, "text", title, x=_LEFT, y=_TOP - 3, class_="series")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies in the drawing."""
        (x_low, x_high), (y_low, y_high) = self._x, self._y
        across = (x - x_low) / (x_high - x_low) * (self.width - _LEFT - _RIGHT)
        return _LEFT + across, self.height - _BOTTOM - (y - y_low) / (y_high - y_low) * (self.height - _TOP - _BOTTOM)


def _tick(value: float) -> str:
    """Return a round value, with a prefix from ten thousand on."""
    size, prefix = prefix_of(value) if abs(value) >= 10_000 else (1.0, "")
    return f"{value / size:g} {prefix}".rstrip()


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Return the range of `values`, widened by a share of itself and never empty."""
    low, high = min(values), max(values)
    if low == high:
        half = 0.5 if not margin else 0.1 * abs(low) or 0.5
        return low - half, high + half
    return low - margin * (high - low), high + margin * (high - low)
