"""What all pictures share: colours, the heading, legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compress.core.svg import Element, add, fitted, text_width

MARGIN = 18.0
INK, SOFT, LINE, ACCENT = "#1f2933", "#5a6672", "#c5ccd3", "#b3401f"
BLUE, ORANGE = "#2c6cb0", "#cf7a1f"
PALETTE = (BLUE, ORANGE, "#3b8f63", "#8a5aa8", "#2794a0", "#a8892a", "#b84c6f", "#6b7480")
HEADING = 56.0  # height of title and subtitle


def pale(colour: str, share: float = 0.82) -> str:
    """Return `colour` mixed with white; `share` is the share of white."""
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)


def colours_of(kinds: Sequence[str], palette: Sequence[str] = PALETTE) -> dict[str, str]:
    """Return a colour for each distinct kind, in order of appearance."""
    return {kind: palette[index % len(palette)] for index, kind in enumerate(dict.fromkeys(kinds))}


def write(parent: Element, text: str, x: float, y: float, size: float, colour: str = INK, **attributes: str) -> None:
    """Add one line of text with its baseline at `y`."""
    add(parent, "text", text, None, x=x, y=y, font_size=size, fill=colour, **attributes)


def centred(parent: Element, text: str, x: float, y: float, size: float, colour: str = INK, **more: str) -> None:
    """Add one line of text centred on `x`."""
    write(parent, text, x, y, size, colour, text_anchor="middle", **more)


def heading(drawing: Element, title: str, subtitle: str, width: float) -> None:
    """Add title and subtitle at the top of a picture; both are shortened to `width`."""
    room = width - 2 * MARGIN
    write(drawing, fitted(title, room, 17), MARGIN, 29, 17, font_weight="600")
    write(drawing, fitted(subtitle, room, 12), MARGIN, 48, 12, SOFT)


def legend(drawing: Element, colours: Mapping[str, str], width: float, y: float, strong: bool = True) -> None:
    """Add a row of named colour patches centred on `y`, as far as `width` reaches."""
    x = MARGIN
    for name, colour in colours.items():
        end = x + 18 + text_width(name, 11)
        if end > width - MARGIN:
            return
        add(drawing, "rect", x=x, y=y - 6, width=12, height=12, rx=2, fill=colour if strong else pale(colour))
        write(drawing, name, x + 17, y + 4, 11, SOFT)
        x = end + 16
