"""A fabric: at every layer a choice of scale and operation, with one path through it marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile

from compress.core import svg
from spaces.drawing.style import HEADING, INK, LINE, MARGIN, SOFT, centred, colours_of, heading, legend, pale, write

_WIDEST, _LEAST, _SLOT, _NAMES = 900.0, 440.0, 64.0, 84.0  # of the picture, of a column, of the names of rows
_GROUP, _PILL, _BETWEEN, _ROW_GAP, _FOOT = 24.0, 18.0, 4.0, 26.0, 54.0


def draw_fabric(
    title: str,
    subtitle: str,
    rows: Sequence[str],
    columns: int,
    options: Mapping[tuple[int, int], Sequence[str]],
    path: Sequence[tuple[int, str]] | None,
    groups: Sequence[int] = (),
) -> str:
    """Return an SVG of a fabric.

    Args:
        title: first line.
        subtitle: second line.
        rows: names of the scales, the largest map first.
        columns: number of layers.
        options: (row, column) -> names of the operations that may stand there.
        path: (row, operation) of each column, drawn strong; None for the fabric alone.
        groups: number of columns in each block.
    """
    grid = _Grid(rows, columns, options, groups)
    drawing = svg.sheet(grid.width, grid.bottom + _FOOT, title)
    heading(drawing, title, subtitle, grid.width)
    colours = colours_of([name for _, names in sorted(options.items()) for name in names])
    grid.draw_frame(drawing)
    grid.draw_steps(drawing)
    for row, column in options:
        for name in options[row, column]:
            grid.draw_pill(drawing, row, column, name, colours[name], strong=False)
    grid.draw_path(drawing, path or ())
    for column, (row, name) in enumerate(path or ()):
        grid.draw_pill(drawing, row, column, name, colours[name], strong=True)
    legend(drawing, colours, grid.width, grid.bottom + 36, strong=path is not None)
    return svg.document(drawing)


class _Grid:
    """Where rows, columns and options are, and how each is drawn."""

    def __init__(
        self,
        rows: Sequence[str],
        columns: int,
        options: Mapping[tuple[int, int], Sequence[str]],
        groups: Sequence[int],
    ) -> None:
        self.rows, self.columns, self.options, self.groups = rows, columns, options, groups
        self.slot = min((_WIDEST - 2 * MARGIN - _NAMES) / columns, _SLOT)
        self.width = max(2 * MARGIN + _NAMES + columns * self.slot, _LEAST)
        self.pill = self.slot - 12
        self.labels = _short({name for names in options.values() for name in names}, self.pill - 4)
        self.middles = []
        y = HEADING + _GROUP
        for row in range(len(rows)):
            most = max((len(names) for (at, _), names in options.items() if at == row), default=1)
            tall = most * (_PILL + _BETWEEN) - _BETWEEN
            self.middles.append(y + tall / 2 + _ROW_GAP / 2)
            y += tall + _ROW_GAP
        self.bottom = y

    def x(self, column: int) -> float:
        return MARGIN + _NAMES + (column + 0.5) * self.slot

    def y(self, row: int, column: int, name: str) -> float:
        names = self.options[row, column]
        return self.middles[row] + (list(names).index(name) - (len(names) - 1) / 2) * (_PILL + _BETWEEN)

    def draw_frame(self, drawing: svg.Element) -> None:
        """Add names of rows, numbers of columns, and the blocks."""
        for name, middle in zip(self.rows, self.middles, strict=True):
            write(drawing, svg.fitted(name, _NAMES - 12, 12), MARGIN, middle + 4, 12, INK, font_weight="600")
        for column in range(self.columns):
            centred(drawing, str(column + 1), self.x(column), self.bottom + 12, 10.5, SOFT)
        start, top = 0, HEADING
        for number, size in enumerate(self.groups, 1):
            left = self.x(start) - self.slot / 2
            svg.add(
                drawing, "rect", x=left + 2, y=top, width=size * self.slot - 4, height=self.bottom - top, rx=6,
                fill="#f5f7f9", stroke=LINE, class_="group",
            )  # fmt: skip
            centred(drawing, f"block {number}", left + size * self.slot / 2, top + 16, 11, SOFT)
            start += size

    def draw_steps(self, drawing: svg.Element) -> None:
        """Add a thin line from each place to those that the next layer can have: the same scale or the next smaller."""
        for row, column in self.options:
            for following in (row, row + 1):
                if (following, column + 1) in self.options:
                    self._line(drawing, (row, column), self.middles[row], following, self.middles[following], LINE, 1.2)

    def draw_path(self, drawing: svg.Element, path: Sequence[tuple[int, str]]) -> None:
        """Add a strong line along the path."""
        for column, ((row, name), (following, other)) in enumerate(pairwise(path)):
            start, end = self.y(row, column, name), self.y(following, column + 1, other)
            self._line(drawing, (row, column), start, following, end, INK, 3.0)

    def _line(
        self, drawing: svg.Element, place: tuple[int, int], y1: float, row: int, y2: float, colour: str, width: float
    ) -> None:
        x1, x2 = self.x(place[1]) + self.pill / 2, self.x(place[1] + 1) - self.pill / 2
        svg.add(
            drawing, "line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=colour, stroke_width=width, stroke_linecap="round",
            class_="path" if colour == INK else "step",
        )  # fmt: skip

    def draw_pill(self, drawing: svg.Element, row: int, column: int, name: str, colour: str, strong: bool) -> None:
        """Add one operation at its place."""
        x, y = self.x(column) - self.pill / 2, self.y(row, column, name) - _PILL / 2
        fill, stroke = (colour, INK) if strong else (pale(colour, 0.8), pale(colour, 0.5))
        svg.add(
            drawing, "rect", x=x, y=y, width=self.pill, height=_PILL, rx=_PILL / 2, fill=fill, stroke=stroke,
            stroke_width=1.5 if strong else 1, class_="chosen" if strong else "option",
        )  # fmt: skip
        if strong:
            centred(drawing, self.labels[name], self.x(column), y + _PILL / 2 + 3.5, 10, "#ffffff")


def _short(names: set[str], width: float) -> dict[str, str]:
    """Return a label for each name that is no wider than `width`: what all begin with is left out first."""
    columns = zip(*names, strict=False)
    shared = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, columns)) if len(names) > 1 else 0
    labels = {}
    for name in names:
        rest = name if svg.text_width(name, 10) <= width else name[shared:]
        labels[name] = rest if svg.text_width(rest, 10) <= width else rest[: int(width / svg.text_width("m", 10))]
    return labels
