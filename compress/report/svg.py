"""Small inline SVG: elements with escaped text, and axes. Colours come from the page's style sheet by class."""

from __future__ import annotations

import math
from xml.etree import ElementTree

Element = ElementTree.Element


def canvas(width: float, height: float, label: str) -> Element:
    """Return an empty drawing that shrinks with the page and reads `label` to who cannot see it."""
    style = f"width:100%;max-width:{width:g}px;height:auto"
    return Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label, "style": style})


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


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Return round values (steps of 1, 2 or 5) within [low, high]."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def elided(name: str, limit: int) -> str:
    """Return a dotted name within `limit` characters: its longest words are cut first, so that numbers stay."""
    parts = name.split(".")
    for longest in range(max(map(len, parts)), 2, -1):
        short = ".".join(part if len(part) <= longest else f"{part[: longest - 1]}…" for part in parts)
        if len(short) <= limit:
            return short
    return f"…{name[1 - limit :]}"
