"""Small SVG: elements with escaped text, and axes.

Inline charts take their colours from the page's style sheet by class; a picture that is a file of its own (`sheet`,
`document`) carries font, background and colours with it.
"""

from __future__ import annotations

import math
from xml.etree import ElementTree

Element = ElementTree.Element
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_WIDEST = 0.61  # of the font size: the average character of the widest common sans-serif font, DejaVu Sans


def canvas(width: float, height: float, label: str) -> Element:
    """Return an empty drawing that shrinks with the page and reads `label` to who cannot see it."""
    style = f"width:100%;max-width:{width:g}px;height:auto"
    return Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label, "style": style})


def sheet(width: float, height: float, label: str) -> Element:
    """Return an empty white picture that is a file of its own and reads `label` to who cannot see it."""
    box = f"{width:g} {height:g}"
    size = dict(zip(("width", "height"), box.split(), strict=True))
    names = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {box}", "role": "img", "aria-label": label}
    drawing = Element("svg", names | size | {"font-family": FONT})
    add(drawing, "rect", rx=6, fill="#ffffff", **size)
    return drawing


def add(parent: Element, tag: str, text: str | None = None, title: str | None = None, **attributes: object) -> Element:
    """Append an element; numbers are rounded, `class_` means class, a dash stands for each underscore."""
    values = {name.rstrip("_").replace("_", "-"): _attribute(value) for name, value in attributes.items()}
    element = ElementTree.SubElement(parent, tag, values)
    element.text = text
    if title:
        ElementTree.SubElement(element, "title").text = title
    return element


def _attribute(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def markup(element: Element) -> str:
    """Return a drawing as text to put into HTML."""
    return ElementTree.tostring(element, encoding="unicode", method="html")


def document(element: Element) -> str:
    """Return a sheet as the text of an SVG file."""
    ElementTree.indent(element, " ")
    return ElementTree.tostring(element, encoding="unicode") + "\n"


def text_width(text: str, font_size: float) -> float:
    """Return how wide `text` may become, whichever sans-serif font is there."""
    return len(text) * font_size * _WIDEST


def fitted(text: str, width: float, font_size: float) -> str:
    """Return `text`, shortened where it might be wider than `width`."""
    limit = max(2, int(width / (font_size * _WIDEST)))
    if len(text) <= limit:
        return text
    return f"{text[: limit - 1].rstrip()}…" if " " in text else elided(text, limit)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Return round values (steps of 1, 2 or 5) within [low, high]."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def elided(name: str, limit: int) -> str:
    """Return a dotted name within `limit` characters: its longest words are cut first, so that numbers stay."""
    if len(name) <= limit:
        return name
    parts = name.split(".")
    for longest in range(max(map(len, parts)), 2, -1):
        short = ".".join(part if len(part) <= longest else f"{part[: longest - 1]}…" for part in parts)
        if len(short) <= limit:
            return short
    return f"…{name[1 - limit :]}"
