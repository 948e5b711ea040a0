"""The multiple-choice knapsack: one option of each item, and the least loss for every time (specified exactly).

The whole trade-off is computed, not the answer to one budget: sums of options that another sum beats in time and loss
are left out after each item (dominance, as in Kellerer, Pferschy, Pisinger, "Knapsack problems" 2004, chapter 11), so
that what is left after the last item is the least loss for any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_SUMS = 8000  # kept after an item; of more, the least loss in each of so many equal parts of the time
FEWEST_SUMS = 1500  # kept for each number of items that stay, where there are many numbers


@dataclass(frozen=True)
class Item:
    """Something of which one option is taken: its `times`, its `losses`, and which options take the block out."""

    times: Floats
    losses: Floats
    gone: NDArray[np.bool_]


@dataclass(frozen=True)
class Stage:
    """Items in the order of the model, and what is lost `besides`, by how many of them stay: 0, 1, ...

    More than it names lose nothing besides. (math.inf,): one has to stay.
    """

    items: tuple[int, ...]
    besides: tuple[float, ...] = ()

    def lost(self, stay: int) -> float:
        """Return what is lost besides where so many items stay."""
        return self.besides[stay] if stay < len(self.besides) else 0.0


@dataclass(frozen=True)
class _Sums:
    """Sums of options that no other sum beats: ascending times, descending losses, and how each was made."""

    times: Floats
    losses: Floats
    nodes: Integers


_Parts = tuple[Floats, Floats, Integers, Integers]  # times, losses, parents and options of sums


class Knapsack:
    """The least loss for every time.

    Args:
        items: what one option is taken of.
        stages: every item in exactly one.
    """

    def __init__(self, items: Sequence[Item], stages: Sequence[Stage]) -> None:
        self._order = [place for stage in stages for place in stage.items]
        self._parents = [np.array([-1])]
        self._options = [np.array([-1])]
        self._count = 1
        sums = _Sums(np.zeros(1), np.zeros(1), np.zeros(1, dtype=np.int64))
        for stage in stages:
            sums = self._through(stage, items, sums)
        self._sums = sums

    @property
    def least(self) -> float:
        """The least time there is."""
        return float(self._sums.times[0])

    def within(self, time: float) -> tuple[float, float, list[int]] | None:
        """Return time, loss and the option of each item of the least loss within `time`; None: nothing is so fast."""
        place = int(np.searchsorted(self._sums.times, time, side="right")) - 1
        if place < 0:
            return None
        return float(self._sums.times[place]), float(self._sums.losses[place]), self._path(self._sums.nodes[place])

    def _through(self, stage: Stage, items: Sequence[Item], sums: _Sums) -> _Sums:
        """Return the sums after the items of a stage."""
        most = len(stage.besides)  # that stay and are told apart
        by_stay: list[_Sums | None] = [sums, *[None] * most]
        for place in stage.items:
            item = items[place]
            parts: list[list[_Parts]] = [[] for _ in by_stay]
            for stay, each in enumerate(by_stay):
                if each is not None:
                    parts[stay].append(self._added(each, item, np.flatnonzero(item.gone)))
                    parts[min(stay + 1, most)].append(self._added(each, item, np.flatnonzero(~item.gone)))
            filled = [[part for part in mine if len(part[0])] for mine in parts]
            share = max(MOST_SUMS // max(1, most), min(FEWEST_SUMS, MOST_SUMS))
            by_stay = [self._kept(mine, share) if mine else None for mine in filled]
        ends = [
            (each.times, each.losses + stage.lost(stay), each.nodes)
            for stay, each in enumerate(by_stay)
            if each is not None and stage.lost(stay) < np.inf
        ]
        times, losses, nodes = (np.concatenate(column) for column in zip(*ends, strict=True))
        best = undominated(times, losses)
        return _Sums(times[best], losses[best], nodes[best])

    def _added(self, sums: _Sums, item: Item, options: Integers) -> _Parts:
        """Return times, losses, parents and options of each sum with each of `options`."""
        times = (sums.times[:, None] + item.times[options]).ravel()
        losses = (sums.losses[:, None] + item.losses[options]).ravel()
        return times, losses, np.repeat(sums.nodes, len(options)), np.tile(options, len(sums.nodes))

    def _kept(self, parts: Sequence[_Parts], most: int) -> _Sums:
        """Return what of these sums no other one beats, about `most` of them."""
        times, losses, parents, options = (np.concatenate(column) for column in zip(*parts, strict=True))
        best = undominated(times, losses)
        if len(best) > most:
            span = times[best[-1]] - times[best[0]]
            part = ((times[best] - times[best[0]]) / span * most).astype(np.int64)
            best = best[np.append(part[1:] != part[:-1], True)]  # losses fall: the last of a part is the least
        nodes = np.arange(self._count, self._count + len(best))
        self._parents.append(parents[best])
        self._options.append(options[best])
        self._count += len(best)
        return _Sums(times[best], losses[best], nodes)

    def _path(self, node: int) -> list[int]:
        """Return the option of each item, in the order of the items."""
        starts = np.cumsum([0, *(len(part) for part in self._parents)])
        chosen = [0] * len(self._order)
        for place in reversed(self._order):
            part = int(np.searchsorted(starts, node, side="right")) - 1
            at = int(node - starts[part])
            chosen[place] = int(self._options[part][at])
            node = int(self._parents[part][at])
        return chosen


def undominated(times: Floats, losses: Floats) -> Integers:
    """Return the places that no other one beats in time and loss, by ascending time; of equals the first stays."""
    order = np.lexsort((losses, times))
    falling = np.minimum.accumulate(losses[order])
    return order[np.append(True, falling[1:] < falling[:-1])] if len(order) else order
