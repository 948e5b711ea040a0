"""Where the nodes of a small directed graph go: ranks from top to bottom, few crossings, short and straight edges.

The usual three steps of layered drawing. Edges that skip a rank run through points of their own there, so that no edge
crosses a node; all edges from one node share these points, so that they leave it as one line.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = Hashable
"""A node by its id, or (id, rank) where edges from that node pass through a rank."""
Edge = tuple[Point, Point]
_PASSING_WIDTH = 12.0
_ATTEMPTS, _SWEEPS, _STRAIGHTENING = 12, 8, 40


@dataclass(frozen=True)
class Layout:
    """Centres of nodes and passing points along x, their ranks, the pieces of edges, and the width of all."""

    x: Mapping[Point, float]
    rank: Mapping[Point, int]
    pieces: tuple[Edge, ...]
    width: float

    @property
    def ranks(self) -> int:
        """Return the number of ranks."""
        return max(self.rank.values()) + 1


def arrange(
    widths: Mapping[str, float], edges: Sequence[tuple[str, str]], late: Iterable[str] = (), gap: float = 12.0
) -> Layout:
    """Lay out the graph of `edges` between the nodes of `widths`.

    Args:
        widths: of every node; nodes that are named first stand further left where nothing else decides.
        edges: from, to; no cycles.
        late: nodes that stand right above what uses them instead of right below what they use.
        gap: the least space between two nodes of a rank.
    """
    rank: dict[Point, int] = {}
    rank.update(_ranks(list(widths), edges, set(late)))
    pieces = _pieces(edges, rank)
    for source, target in pieces:
        for point in (source, target):
            if isinstance(point, tuple):
                rank[point] = point[1]
    rows = _named_first_left(_order(rank, pieces), list(widths))
    room = {point: widths.get(point, _PASSING_WIDTH) if isinstance(point, str) else _PASSING_WIDTH for point in rank}
    x = _straighten(rows, pieces, room, gap)
    _align_passing(x, rows, room, gap)
    left = min(x[point] - room[point] / 2 for point in x)
    width = max(x[point] + room[point] / 2 for point in x) - left
    return Layout({point: at - left for point, at in x.items()}, rank, tuple(pieces), width)


def _ranks(names: Sequence[str], edges: Sequence[tuple[str, str]], late: set[str]) -> dict[str, int]:
    """Return the longest path from a source to each node; `late` nodes then move down to their users."""
    rank = dict.fromkeys(names, 0)
    for _ in names:  # a longest path has fewer edges than there are nodes
        for source, target in edges:
            rank[target] = max(rank[target], rank[source] + 1)
    for name in sorted(late, key=lambda each: -rank[each]):
        users = [rank[target] for source, target in edges if source == name]
        rank[name] = min(users, default=rank[name] + 1) - 1
    return rank


def _pieces(edges: Iterable[tuple[str, str]], rank: Mapping[Point, int]) -> list[Edge]:
    """Return edges cut at every rank that they pass, each piece once."""
    found: dict[Edge, None] = {}
    for source, target in edges:
        passed: list[Point] = [(source, at) for at in range(rank[source] + 1, rank[target])]
        path = [source, *passed, target]
        found |= dict.fromkeys(pairwise(path))
    return list(found)


def _order(rank: Mapping[Point, int], pieces: Sequence[Edge]) -> list[list[Point]]:
    """Return the points of each rank from left to right with few crossings: the best of several attempts."""
    rows: list[list[Point]] = [[] for _ in range(max(rank.values()) + 1)]
    for point, at in rank.items():
        rows[at].append(point)
    above, below = _neighbours(pieces)
    generator = random.Random(0)
    best, fewest = rows, _crossings(rows, below)
    for attempt in range(_ATTEMPTS):
        tried = [list(row) if attempt == 0 else generator.sample(row, len(row)) for row in rows]
        for sweep in range(_SWEEPS):
            _sweep(tried, above if sweep % 2 == 0 else below, downwards=sweep % 2 == 0)
            _swap_neighbours(tried, above, below)
            crossings = _crossings(tried, below)
            if crossings < fewest:
                best, fewest = [list(row) for row in tried], crossings
    return best


def _named_first_left(rows: list[list[Point]], names: Sequence[str]) -> list[list[Point]]:
    """Return the rows, or their mirror image, such that the nodes of the first one stand as they are named."""
    order = [names.index(str(point)) for point in rows[0]]
    return [row[::-1] for row in rows] if order[0] > order[-1] else rows


def _neighbours(pieces: Iterable[Edge]) -> tuple[dict[Point, list[Point]], dict[Point, list[Point]]]:
    above: dict[Point, list[Point]] = defaultdict(list)
    below: dict[Point, list[Point]] = defaultdict(list)
    for source, target in pieces:
        below[source].append(target)
        above[target].append(source)
    return above, below


def _sweep(rows: list[list[Point]], neighbours: Mapping[Point, list[Point]], downwards: bool) -> None:
    """Sort each row by the mean position of its neighbours in the row before."""
    order = range(1, len(rows)) if downwards else range(len(rows) - 2, -1, -1)
    for index in order:
        before = {point: at for at, point in enumerate(rows[index - 1 if downwards else index + 1])}
        mean = {}
        for at, point in enumerate(rows[index]):
            places = [before[other] for other in neighbours.get(point, ())]
            mean[point] = sum(places) / len(places) if places else float(at)
        rows[index].sort(key=mean.__getitem__)


def _swap_neighbours(
    rows: list[list[Point]], above: Mapping[Point, list[Point]], below: Mapping[Point, list[Point]]
) -> None:
    """Swap points next to each other wherever that removes crossings."""
    for index, row in enumerate(rows):
        up = {point: at for at, point in enumerate(rows[index - 1])} if index else {}
        down = {point: at for at, point in enumerate(rows[index + 1])} if index + 1 < len(rows) else {}
        for at in range(len(row) - 1):
            left, right = row[at], row[at + 1]
            change = sum(
                _inversions(place, near.get(right, ()), near.get(left, ()))
                - _inversions(place, near.get(left, ()), near.get(right, ()))
                for place, near in ((up, above), (down, below))
            )
            if change < 0:
                row[at], row[at + 1] = right, left


def _inversions(place: Mapping[Point, int], left: Iterable[Point], right: Sequence[Point]) -> int:
    """Return how many edges cross between a point with neighbours `left` and one right of it with `right`."""
    return sum(place[a] > place[b] for a in left for b in right)


def _crossings(rows: Sequence[Sequence[Point]], below: Mapping[Point, list[Point]]) -> int:
    total = 0
    for row, following in pairwise(rows):
        place = {point: at for at, point in enumerate(following)}
        for at, left in enumerate(row):
            total += sum(_inversions(place, below.get(left, ()), below.get(right, ())) for right in row[at + 1 :])
    return total


def _straighten(
    rows: Sequence[Sequence[Point]], pieces: Sequence[Edge], room: Mapping[Point, float], gap: float
) -> dict[Point, float]:
    """Return positions that keep the order and draw each point to the mean of its neighbours."""
    x: dict[Point, float] = {}
    for row in rows:
        x |= _apart(row, dict.fromkeys(row, 0.0), dict.fromkeys(row, 1.0), room, gap)
    pulls: dict[Point, list[tuple[Point, float]]] = defaultdict(list)
    for source, target in pieces:
        weight = 12.0 if isinstance(source, tuple) and isinstance(target, tuple) else 1.0  # long edges run straight
        pulls[source].append((target, weight))
        pulls[target].append((source, weight))
    for sweep in range(_STRAIGHTENING):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wished, total = {}, {}
            for point in row:
                total[point] = sum(weight for _, weight in pulls[point]) or 1.0
                mean = sum(x[other] * weight for other, weight in pulls[point]) / total[point]
                wished[point] = mean if pulls[point] else x[point]
            x |= _apart(row, wished, total, room, gap)
    return x


def _align_passing(
    x: dict[Point, float], rows: Sequence[Sequence[Point]], room: Mapping[Point, float], gap: float
) -> None:
    """Put the points that one long edge passes exactly below each other wherever there is room at one of them."""
    chains: dict[str, list[Point]] = defaultdict(list)
    for row in rows:
        for point in row:
            if isinstance(point, tuple):
                chains[point[0]].append(point)
    limits = {point: (-math.inf, math.inf) for row in rows for point in row}
    for chain in chains.values():
        for row in rows:
            for index, point in enumerate(row):
                low = x[row[index - 1]] + (room[row[index - 1]] + room[point]) / 2 + gap if index else -math.inf
                more = index + 1 < len(row)
                high = x[row[index + 1]] - (room[row[index + 1]] + room[point]) / 2 - gap if more else math.inf
                limits[point] = (low, high)
        free = [at for at in (x[point] for point in chain) if all(limits[p][0] <= at <= limits[p][1] for p in chain)]
        if free:
            x |= dict.fromkeys(chain, free[len(free) // 2])


def _apart(
    row: Sequence[Point],
    wished: Mapping[Point, float],
    weights: Mapping[Point, float],
    room: Mapping[Point, float],
    gap: float,
) -> dict[Point, float]:
    """Return the positions nearest to `wished` (weighted least squares) that keep the order of `row` and its spaces.

    With the space before each point taken off, that is isotonic regression: neighbours in the wrong order share a mean.
    """
    offsets, at = [], 0.0
    for index, point in enumerate(row):
        at += (room[row[index - 1]] + room[point]) / 2 + gap if index else 0.0
        offsets.append(at)
    pools: list[tuple[float, float, int]] = []  # mean, weight, number of points
    for point, offset in zip(row, offsets, strict=True):
        mean, weight, size = wished[point] - offset, weights[point], 1
        while pools and pools[-1][0] > mean:
            other, more, others = pools.pop()
            mean, weight = (mean * weight + other * more) / (weight + more), weight + more
            size += others
        pools.append((mean, weight, size))
    shared = [mean for mean, _, size in pools for _ in range(size)]
    return {point: mean + offset for point, mean, offset in zip(row, shared, offsets, strict=True)}
