"""Which lanes belong together by where they lie: what a lane may have to be tied with, and its like in other blocks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from compress.graph.graph import Group

Lane = tuple[str, ...]  # the names of groups that keep the same fraction; most have one
MOST_PARTNERS = 8  # for a tie


class Kin:
    """Relations among lanes of `groups` (by name)."""

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self.groups = groups

    def partners(self, lane: Lane, lanes: Sequence[Lane], seen_groups: Iterable[str]) -> list[list[Lane]]:
        """Return what of `lanes` a lane might have to be tied with, the likeliest first.

        One of `seen_groups`, those that the failing operation sees, one of the same width, or of a multiple; then all
        of the first two kinds. Of lanes at the same place of several blocks the first comes before all, the others
        after them: mostly either all do or none. One may need all blocks that it goes through: a stream, in which each
        attention computes the width of its heads from that of the stream and their number.
        """
        seen = [other for other in lanes if other != lane and not set(other).isdisjoint(seen_groups)]
        alike = self._alike(lane, lanes)
        both = list(dict.fromkeys([*seen, *alike]))
        single = list(dict.fromkeys([*both, *self._multiples(lane, lanes)]))[:MOST_PARTNERS]
        first = list({place_of(other): other for other in reversed(single)}.values())[::-1]
        later = [[other] for other in single if other not in first]
        through = [[other, *self._through(other, lane, lanes)] for other in first]
        sets = [*([other] for other in first), seen, alike, both, *through, *later, single]
        return [some for place, some in enumerate(sets) if some and some not in sets[:place]]

    def near(self, lane: Lane, lanes: Sequence[Lane]) -> list[Lane]:
        """Return the other lanes that meet this one in a module."""
        around = self._modules(lane)
        return [other for other in lanes if other != lane and not around.isdisjoint(self._modules(other))]

    def within(self, modules: Collection[str], lanes: Sequence[Lane]) -> list[Lane]:
        """Return the lanes that narrow layers of these modules."""
        return [lane for lane in lanes if not self._modules(lane).isdisjoint(modules)]

    def _alike(self, lane: Lane, lanes: Sequence[Lane]) -> list[Lane]:
        """Return the lanes of the same width, by itself or times heads, that meet this one or one that does so."""
        widths, met, around = self._widths(lane), [lane], self._modules(lane)
        rest = [other for other in lanes if other != lane and not widths.isdisjoint(self._widths(other))]
        while near := [other for other in rest if not around.isdisjoint(self._modules(other))]:
            met += near
            rest = [other for other in rest if other not in near]
            around = around.union(*(self._modules(other) for other in near))
        return met[1:]

    def _multiples(self, lane: Lane, lanes: Sequence[Lane]) -> list[Lane]:
        """Return the lanes that meet this one in a module and whose width is a multiple or a part of its own."""
        width, near = self.groups[lane[0]].size, self.near(lane, lanes)
        sizes = {other: self.groups[other[0]].size for other in near}
        return [other for other in near if sizes[other] % width == 0 or width % sizes[other] == 0]

    def _through(self, stream: Lane, lane: Lane, lanes: Sequence[Lane]) -> list[Lane]:
        """Return the lanes at the place of `lane` in other blocks that `stream` goes through."""
        like = [other for other in lanes if other not in (lane, stream) and place_of(other) == place_of(lane)]
        return [other for other in like if not self._modules(stream).isdisjoint(self._modules(other))]

    def _modules(self, lane: Lane) -> set[str]:
        """Return the modules around the layers that a lane narrows."""
        return {part.layer.rpartition(".")[0] for name in lane for part in self.groups[name].slices}

    def _widths(self, lane: Lane) -> set[int]:
        group = self.groups[lane[0]]
        return {group.size, group.size * group.repeats}


def counterparts(some: Sequence[Lane], lanes: Sequence[Lane]) -> list[list[Lane]]:
    """Return the sets of `lanes` at the same places of other blocks as `some`, where these lie in one block."""
    blocks = {_blocks_of(lane) for lane in some}
    if len(blocks) != 1:
        return []
    places = [place_of(lane) for lane in some]
    found: dict[tuple[str, ...], dict[str, Lane]] = {}
    for lane in lanes:
        if place_of(lane) in places and _blocks_of(lane) not in blocks:
            found.setdefault(_blocks_of(lane), {})[place_of(lane)] = lane
    return [[each[place] for place in places] for each in found.values() if len(each) == len(set(places))]


def place_of(lane: Lane) -> str:
    """Return the place of a lane in its block: its names without their numbers."""
    return "|".join(re.sub(r"\d+", "#", name) for name in lane)


def _blocks_of(lane: Lane) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", lane[0].rpartition(":")[0]))
