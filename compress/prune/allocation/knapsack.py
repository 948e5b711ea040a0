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


@dataclass(frozen=True)
class Item:
    """Something of which one option is taken: its `times`, its `losses`, and which options take the block out."""

    times: Floats
    losses: Floats
    gone: NDArray[np.bool_]


@dataclass(frozen=True)
class Stage:
    """Items in the order of the model; `keeps_one`: some item must be taken with an option that is not `gone`."""

    items: tuple[int, ...]
    keeps_one: bool = False


@dataclass(frozen=True)
class _Sums:
    """Sums of options that no other sum beats: ascending times, descending losses, and how each was made."""

    times: Floats
    losses: Floats
    nodes: Integers


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
        if not stage.keeps_one:
            for place in stage.items:
                sums = self._kept([self._added(sums, items[place], np.arange(len(items[place].times)))])
            return sums
        none, some = sums, None  # no item of the stage is kept so far; one is
        for place in stage.items:
            item = items[place]
            stays = self._added(none, item, np.flatnonzero(~item.gone))
            both = [stays] if some is None else [self._added(some, item, np.arange(len(item.times))), stays]
            some = self._kept(both)
            none = self._kept([self._added(none, item, np.flatnonzero(item.gone))])
        assert some is not None
        return some

    def _added(self, sums: _Sums, item: Item, options: Integers) -> tuple[Floats, Floats, Integers, Integers]:
        """Return times, losses, parents and options of each sum with each of `options`."""
        times = (sums.times[:, None] + item.times[options]).ravel()
        losses = (sums.losses[:, None] + item.losses[options]).ravel()
        return times, losses, np.repeat(sums.nodes, len(options)), np.tile(options, len(sums.nodes))

    def _kept(self, parts: Sequence[tuple[Floats, Floats, Integers, Integers]]) -> _Sums:
        """Return what of these sums no other one beats."""
        times, losses, parents, options = (np.concatenate(column) for column in zip(*parts, strict=True))
        best = undominated(times, losses)
        if len(best) > MOST_SUMS:
            span = times[best[-1]] - times[best[0]]
            part = ((times[best] - times[best[0]]) / span * MOST_SUMS).astype(np.int64)
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
