"""A space, or an architecture of one that has no layers to show: every decision with its choices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from compress.core import svg
from spaces.architecture import Architecture, Choice
from spaces.decision_lines import Group, about, group_decisions
from spaces.drawing.style import BLUE, HEADING, INK, LINE, MARGIN, SOFT, centred, heading, pale, write

if TYPE_CHECKING:
    from spaces.space import Space

_ONE, _TWO = 700.0, 980.0  # width of the picture with one or two columns
_ROW, _SECTION, _GAP, _ROWS_IN_ONE = 26.0, 26.0, 10.0, 16
_CONDITION = 140.0  # least room for telling where decisions are taken
_LABEL = 0.5  # the largest share of a column that the names of decisions take


def draw_offer(space: Space, arch: Architecture | None) -> str:
    """Return an SVG of what the decisions of `space` offer; the choices of `arch` are marked."""
    if arch is None:
        groups = group_decisions(space.decisions, by_condition=False)
    else:
        groups = [each for decision in space.decisions if decision.name in arch for each in group_decisions([decision])]
    cards = [list(members) for _, members in groupby(groups, key=lambda group: group.section)]
    columns = _columns(cards)
    width = _ONE if len(columns) == 1 else _TWO
    height = HEADING + max(sum(map(_card_height, column)) for column in columns) + MARGIN
    drawing = svg.sheet(width, height, f"decisions of {space.name}")
    heading(drawing, title_of(space, arch), _subtitle(space), width)
    room = (width - 2 * MARGIN - _GAP * (len(columns) - 1)) / len(columns)
    names = min(room * _LABEL, max(svg.text_width(group.name, 11.5) for group in groups) + 30)
    for index, column in enumerate(columns):
        y = HEADING
        for card in column:
            _draw_card(drawing, card, arch, MARGIN + index * (room + _GAP), y, room, names)
            y += _card_height(card)
    return svg.document(drawing)


def title_of(space: Space, arch: Architecture | None) -> str:
    """Return the name of the space, with the preset that it or `arch` is, or with the code of `arch` where short."""
    options = space.config.model_dump(mode="json", exclude_defaults=True)
    title = space.name
    for name, preset in space.presets.items():
        if json.loads(json.dumps(dict(preset.options))) != options:
            continue
        if preset.code is None:
            title = f"{space.name}  {name}"
        elif arch is not None and space.parse(preset.code) == arch:
            return f"{space.name}  {name}"
    code = {} if arch is None else space.to_code(arch)
    return title if isinstance(code, Mapping) or len(str(code)) > 60 else f"{title}  {code}"


def _subtitle(space: Space) -> str:
    number = space.count()
    exact = f"{number:,}" if number < 10**15 else f"{number} (about {about(number)})"
    total = exact if number < 10**40 else f"about {about(number)}"
    return f"{total} architectures · {len(space.decisions)} decisions"


def _columns(cards: list[list[Group]]) -> list[list[list[Group]]]:
    """Return the cards in one column, or in two of about the same height; a card too long for one is cut."""
    rows = sum(map(len, cards))
    if rows <= _ROWS_IN_ONE:
        return [cards]
    left: list[list[Group]] = []
    right: list[list[Group]] = []
    filled, half = 0, (rows + 1) // 2
    for card in cards:
        room = max(0, half - filled)
        if len(card) > room and (room > 4 or len(card) > half):
            left, right = [*left, card[:room]] if room else left, [*right, card[room:]]
        else:
            (left if room and not right else right).append(card)
        filled += len(card)
    return [left, right]


def _card_height(card: Sequence[Group]) -> float:
    return (_SECTION if card[0].section else 6.0) + len(card) * _ROW + 6 + _GAP


def _draw_card(
    drawing: svg.Element,
    card: Sequence[Group],
    arch: Architecture | None,
    x: float,
    y: float,
    width: float,
    names: float,
) -> None:
    """Add a card of `width`, whose left part `names` holds the names of its decisions."""
    tall = _card_height(card) - _GAP
    svg.add(drawing, "rect", x=x, y=y, width=width, height=tall, rx=5, fill="#f7f9fb", stroke=LINE, class_="card")
    if card[0].section:
        write(drawing, svg.fitted(card[0].section, width - 20, 12.5), x + 10, y + 19, 12.5, font_weight="600")
    y += _SECTION if card[0].section else 6.0
    for row, group in enumerate(card):
        middle = y + (row + 0.5) * _ROW
        write(drawing, svg.fitted(group.name, names - 16, 11.5), x + 10, middle + 4, 11.5, SOFT)
        chosen = None if arch is None else arch[group.members[0].name]
        end = _draw_choices(drawing, group.choices, chosen, x + names, middle, width - names - 10)
        room = x + width - 10 - end
        if arch is None and room > _CONDITION:
            write(drawing, svg.fitted(_condition(group), room, 10.5), end + 4, middle + 4, 10.5, SOFT)


def _condition(group: Group) -> str:
    """Return where all decisions of `group` are taken, if one sentence says so."""
    parts = group_decisions(group.members)
    return parts[0].condition if len(parts) == 1 else ""


def _draw_choices(
    drawing: svg.Element, choices: tuple[Choice, ...], chosen: Choice | None, x: float, middle: float, room: float
) -> float:
    """Add one chip per choice; where they do not fit, dots stand for those in the middle. Return where they end."""
    for choice in _that_fit(choices, chosen, room):
        strong = chosen is not None and choice == chosen
        text = "…" if choice is None else _label(choice, room)
        wide = _chip(choice, room)
        if choice is not None:
            fill, stroke = (BLUE, BLUE) if strong else (pale(BLUE, 0.85), pale(BLUE, 0.5))
            svg.add(
                drawing,
                "rect",
                x=x,
                y=middle - 9,
                width=wide,
                height=18,
                rx=4,
                fill=fill,
                stroke=stroke,
                class_="choice",
            )
        centred(drawing, text, x + wide / 2, middle + 4, 11, "#ffffff" if strong else INK)
        x += wide + 5
    return x


def _that_fit(choices: tuple[Choice, ...], chosen: Choice | None, room: float) -> list[Choice | None]:
    """Return the choices that fit into `room`, the chosen and the last one among them; None stands for a gap."""
    kept: list[Choice | None] = list(choices)
    total = sum(_chip(choice, room) + 5 for choice in kept)
    if total <= room:
        return kept
    gap = 1
    total += _chip(None, room) + 5
    for index in range(len(choices) - 2, 0, -1):
        if total > room and (chosen is None or kept[index] != chosen):
            total -= _chip(kept.pop(index), room) + 5
            gap = index
    return [*kept[:gap], None, *kept[gap:]]


def _chip(choice: Choice | None, room: float) -> float:
    return 14.0 if choice is None else max(22.0, svg.text_width(_label(choice, room), 11) + 10)


def _label(choice: Choice, room: float) -> str:
    """Return the text of a chip: short enough for a chosen, a first and a last one side by side."""
    return svg.fitted(str(choice), room / 3 - 24, 11)
