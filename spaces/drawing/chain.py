"""A network as a chain: how wide and how large the map is after every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import TYPE_CHECKING

from compress.core import svg
from compress.core.formatting import count
from spaces.architecture import Architecture
from spaces.drawing.offer import draw_offer, title_of
from spaces.drawing.style import (
    ACCENT,
    HEADING,
    INK,
    LINE,
    MARGIN,
    SOFT,
    centred,
    colours_of,
    heading,
    legend,
    pale,
)  # fmt: skip
from spaces.layers import Layer

if TYPE_CHECKING:
    from spaces.space import Space

_WIDEST, _LEAST, _PER_LINE, _WORD_LINES = 860.0, 760.0, 12, 3
_GROUP, _LABEL, _BOX, _CHANNELS, _WORD, _GAP = 22.0, 14.0, 78.0, 16.0, 12.5, 14.0


@dataclass(frozen=True)
class _Scale:
    """From map sizes and channels to heights and widths of boxes."""

    size: int
    channels: int
    slot: float

    def height(self, layer: Layer) -> float:
        return 10 + (_BOX - 10) * math.log2(max(layer.size, 1)) / max(math.log2(self.size), 1.0)

    def tallest(self, layers: list[Layer]) -> float:
        return max(map(self.height, layers))

    def line(self, layers: list[Layer]) -> float:
        """Return the height of a line of layers with all that stands around them."""
        words = max(len(self.words(layer)) for layer in layers)
        return _GROUP + _LABEL + self.tallest(layers) + _CHANNELS + _WORD * words + _GAP

    def words(self, layer: Layer) -> list[str]:
        """Return the operation of a layer in lines that fit below its box."""
        return _wrapped(layer.operation, self.slot - 4)

    def width(self, layer: Layer) -> float:
        return 8 + (self.slot - 22) * math.sqrt(layer.out_channels / self.channels)


def draw_chain(space: Space, arch: Architecture | None, img_size: int | None) -> str:
    """Return an SVG of the layers of `arch` on images of `img_size` pixels: one box each, as tall as its map is large
    and as wide as it has channels.

    Without an architecture, or for a space that cannot list its layers, the picture shows what each decision offers.
    """
    layers = None if arch is None else space.layers(arch, space.task(img_size=img_size))
    if arch is None or not layers:
        return draw_offer(space, arch)
    lines = math.ceil(len(layers) / _PER_LINE)
    per_line = math.ceil(len(layers) / lines)
    colours = colours_of([_kind(layer) for layer in layers])
    title = title_of(space, arch)
    scale = _Scale(
        max(layer.size for layer in layers),
        max(layer.out_channels for layer in layers),
        min((_WIDEST - 2 * MARGIN) / per_line, 90.0),
    )
    parts = [layers[start : start + per_line] for start in range(0, len(layers), per_line)]
    height = HEADING + sum(scale.line(part) for part in parts) + 26
    width = max(2 * MARGIN + per_line * scale.slot, _LEAST)
    drawing = svg.sheet(width, height, f"layers of {title}")
    heading(drawing, title, _subtitle(layers, space.input_size(arch, img_size)), width)
    y, before = HEADING, None
    for part in parts:
        _draw_line(drawing, part, before, scale, colours, y)
        y, before = y + scale.line(part), part[-1]
    legend(drawing, colours, width, height - 18)
    return svg.document(drawing)


def _subtitle(layers: list[Layer], img_size: int) -> str:
    params, macs = sum(layer.params for layer in layers), sum(layer.macs for layer in layers)
    return (
        f"{count(params)} parameters · {count(macs)} MACs at {img_size} px · {len(layers)} layers ·"
        " height: map size, width and number: channels"
    )


def _kind(layer: Layer) -> str:
    """Return the operation without its numbers: `mbconv` of `mbconv k5 e6 se`."""
    words = takewhile(lambda word: not any(map(str.isdigit, word)), layer.operation.split())
    return " ".join(words) or "layer"


def _draw_line(
    drawing: svg.Element,
    layers: list[Layer],
    before: Layer | None,
    scale: _Scale,
    colours: dict[str, str],
    top: float,
) -> None:
    base = top + _GROUP + _LABEL + scale.tallest(layers)
    end = MARGIN + len(layers) * scale.slot
    svg.add(drawing, "line", x1=MARGIN, x2=end, y1=base + 0.5, y2=base + 0.5, stroke=LINE)
    _draw_groups(drawing, layers, scale.slot, top + 14)
    for index, layer in enumerate(layers):
        x = MARGIN + (index + 0.5) * scale.slot
        box = svg.add(drawing, "g", title=_details(layer))
        tall, wide = scale.height(layer), scale.width(layer)
        colour = colours[_kind(layer)]
        svg.add(
            box, "rect", x=x - wide / 2, y=base - tall, width=wide, height=tall, rx=2, fill=pale(colour, 0.55),
            stroke=colour, class_="layer",
        )  # fmt: skip
        previous = layers[index - 1] if index else before
        if not index or previous is None or previous.size != layer.size or layer.stride > 1:
            changed = layer.stride > 1
            text = f"÷{layer.stride} → {layer.size}" if changed else f"{layer.size} px"
            centred(box, text, x, base - tall - 4, 10.5, ACCENT if changed else SOFT)
        centred(box, str(layer.out_channels), x, base + 13, 12, INK, font_weight="600")
        for row, words in enumerate(scale.words(layer)):
            centred(box, words, x, base + _CHANNELS + _WORD * (row + 0.8), 10, SOFT)


def _draw_groups(drawing: svg.Element, layers: list[Layer], slot: float, y: float) -> None:
    """Add a bracket over layers whose names have the same first word."""
    start = MARGIN
    for name, members in groupby(layers, key=lambda layer: layer.name.split(".")[0]):
        width = slot * len(list(members))
        svg.add(drawing, "line", x1=start + 4, x2=start + width - 4, y1=y + 4, y2=y + 4, stroke=LINE, stroke_width=2)
        centred(drawing, svg.fitted(name, width - 6, 10.5), start + width / 2, y, 10.5, SOFT)
        start += width


def _wrapped(text: str, width: float) -> list[str]:
    """Return the words of `text` in at most three lines."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and svg.text_width(joined, 10) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    kept = lines[:_WORD_LINES]
    if len(lines) > _WORD_LINES:
        kept[-1] = " ".join(lines[_WORD_LINES - 1 :])
    return [svg.fitted(line, width, 10) for line in kept]


def _details(layer: Layer) -> str:
    return f"{layer.name}: {layer.operation}; {count(layer.params)} parameters, {count(layer.macs)} MACs"
