"""Cells as graphs: inputs at the top, operations, combinations, the output at the bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compress.core import svg
from spaces.drawing.layout import Layout, arrange
from spaces.drawing.style import (
    BLUE,
    HEADING,
    INK,
    MARGIN,
    ORANGE,
    PALETTE,
    SOFT,
    centred,
    colours_of,
    heading,
    pale,
    write,
)  # fmt: skip

_NODE, _GAP, _NAME, _FONT = 26.0, 30.0, 26.0, 11.5
_SIDE_BY_SIDE, _LEAST = 960.0, 520.0  # two cells share a line up to this width; no picture is narrower than the other
_EDGE = "#7d8894"
_OPERATIONS = tuple(colour for colour in PALETTE if colour not in (BLUE, ORANGE))


@dataclass(frozen=True)
class Node:
    """A node of a cell; `label` is what the picture says of it."""

    id: str
    label: str
    kind: Literal["input", "operation", "combine", "output"]


@dataclass(frozen=True)
class CellGraph:
    """A cell: its nodes and the edges (from, to) between their ids."""

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]


def draw_cells(title: str, subtitle: str, cells: Sequence[CellGraph]) -> str:
    """Return an SVG of `cells`: side by side where there is room, else below each other."""
    layouts = [_arranged(cell) for cell in cells]
    sizes = [(layout.width, _NAME + layout.ranks * (_NODE + _GAP) - _GAP) for layout in layouts]
    beside = sum(width for width, _ in sizes) + (len(cells) + 1) * 2 * MARGIN <= _SIDE_BY_SIDE
    if beside:
        width = sum(width + 2 * MARGIN for width, _ in sizes) + MARGIN
        height = HEADING + max(tall for _, tall in sizes) + MARGIN
    else:
        width = max(width for width, _ in sizes) + 2 * MARGIN
        height = HEADING + sum(tall + 2 * MARGIN for _, tall in sizes) - MARGIN
    width = max(width, _LEAST)
    drawing = svg.sheet(width, height, title)
    heading(drawing, title, subtitle, width)
    kinds = [_kind(node) for cell in cells for node in cell.nodes if node.kind == "operation"]
    colours = colours_of(kinds, _OPERATIONS)
    x, y = MARGIN, HEADING
    for cell, layout, (wide, tall) in zip(cells, layouts, sizes, strict=True):
        left = x if beside else (width - wide) / 2
        write(drawing, cell.name, left if beside else MARGIN, y + 14, 13, font_weight="600")
        _draw_cell(drawing, cell, layout, colours, left, y + _NAME)
        x, y = (x + wide + 2 * MARGIN, y) if beside else (x, y + tall + 2 * MARGIN)
    return svg.document(drawing)


def _arranged(cell: CellGraph) -> Layout:
    late = [node.id for node in cell.nodes if node.kind == "operation"]
    return arrange({node.id: _width(node) for node in cell.nodes}, cell.edges, late)


def _width(node: Node) -> float:
    if node.kind == "combine" and len(node.label) <= 2:
        return _NODE
    return max(svg.text_width(node.label, _FONT) + 14, 44.0)


def _kind(node: Node) -> str:
    """Return the first word of an operation without its kernel: `sep` of `sep 5x5`."""
    return node.label.split()[0].rstrip("0123456789x×")


def _draw_cell(
    drawing: svg.Element, cell: CellGraph, layout: Layout, colours: Mapping[str, str], left: float, top: float
) -> None:
    nodes = {node.id: node for node in cell.nodes}
    inputs = [node.id for node in cell.nodes if node.kind == "input"]
    strokes = dict(zip(inputs, (BLUE, ORANGE), strict=False))
    place = {point: (left + x, top + layout.rank[point] * (_NODE + _GAP) + _NODE / 2) for point, x in layout.x.items()}
    for source, target in layout.pieces:
        origin = source[0] if isinstance(source, tuple) else source
        _draw_piece(drawing, place[source], place[target], strokes.get(str(origin), _EDGE), target in nodes)
    for point, (x, y) in place.items():
        if isinstance(point, tuple):
            colour = strokes.get(point[0], _EDGE)
            svg.add(drawing, "line", x1=x, x2=x, y1=y - _NODE / 2, y2=y + _NODE / 2, stroke=colour, stroke_width=1.6)
    for node in cell.nodes:
        _draw_node(drawing, node, *place[node.id], strokes.get(node.id, colours.get(_kind(node), SOFT)))


def _draw_piece(
    drawing: svg.Element, start: tuple[float, float], end: tuple[float, float], colour: str, arrives: bool
) -> None:
    """Add the part of an edge between two ranks, from below one to above the other; a head where it arrives."""
    (x1, y1), (x2, y2) = start, end
    y1, y2 = y1 + _NODE / 2, y2 - _NODE / 2 - (4 if arrives else 0)
    bend = (y2 - y1) * 0.5
    path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"
    svg.add(drawing, "path", d=path, fill="none", stroke=colour, stroke_width=1.6, class_="edge")
    if arrives:
        head = f"M{x2 - 3.5:.1f} {y2 - 2:.1f}L{x2 + 3.5:.1f} {y2 - 2:.1f}L{x2:.1f} {y2 + 4:.1f}Z"
        svg.add(drawing, "path", d=head, fill=colour)


def _draw_node(drawing: svg.Element, node: Node, x: float, y: float, colour: str) -> None:
    wide = _width(node)
    fills = {"input": (colour, colour), "operation": (pale(colour), colour), "output": (INK, INK)}
    fill, stroke = fills.get(node.kind, ("#ffffff", INK))
    radius = 5 if node.kind == "operation" else _NODE / 2
    svg.add(
        drawing, "rect", x=x - wide / 2, y=y - _NODE / 2, width=wide, height=_NODE, rx=radius, fill=fill,
        stroke=stroke, class_=node.kind,
    )  # fmt: skip
    dark = node.kind in ("input", "output")
    centred(drawing, node.label, x, y + 4, _FONT, "#ffffff" if dark else INK)
