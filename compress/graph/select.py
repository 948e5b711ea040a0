"""Choose the units to keep so that a cost target is met: one threshold for all groups, then single steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.graph.cost_model import CostModel
from compress.graph.graph import Graph
from compress.graph.lanes import Allocation, Integers, Lane, make_lanes
from compress.graph.widths import WidthRules

FINE = 0.002  # refinement ends this near to the target (fraction of the dense cost)


@dataclass(frozen=True)
class Choice:
    """Widths (group -> units), the units kept (sorted), and the fraction of the dense cost that they leave."""

    widths: dict[str, int]
    kept: dict[str, Tensor]
    achieved: float


class Selector:
    """All choices of widths for one set of scores, from the dense model to the least widths.

    Args:
        graph: the groups; its ties move together.
        scores: group -> float64 (size,), higher is kept longer; groups without scores keep their width.
        cost: of the same graph.
        allocation: `global` compares scores between groups, `module` between groups of one kind, `uniform` not at all.
        rules: the widths that are allowed.
    """

    def __init__(
        self,
        graph: Graph,
        scores: Mapping[str, Tensor],
        cost: CostModel,
        allocation: Allocation = "global",
        rules: WidthRules | None = None,
    ) -> None:
        self.graph, self.scores, self.cost = graph, scores, cost
        self.rules = rules or WidthRules()
        self.lanes = make_lanes(graph, scores, allocation, self.rules)
        self._order = _removal_order(self.lanes)

    @property
    def lowest(self) -> float:
        """The least fraction of the dense cost that can be reached."""
        return self._fraction(np.zeros(len(self.lanes), dtype=np.int64))

    def nearest(self, target: float) -> Choice:
        """Return the choice whose cost is nearest to the fraction `target` of the dense cost."""
        below, above = 0, len(self._order)
        while below < above:  # the most removals that still cost at least the target
            middle = (below + above + 1) // 2
            if self._fraction(self._levels(middle)) >= target:
                below = middle
            else:
                above = middle - 1
        starts = [self._levels(below), self._levels(min(below + 1, len(self._order)))]
        best = self._refined(starts[0], target)
        if abs(self._fraction(best) - target) > FINE:
            best = min([best, self._refined(starts[1], target)], key=lambda s: abs(self._fraction(s) - target))
        return self._choice(best)

    def removing(self, share: float) -> Choice:
        """Return the choice that lacks about this share of the dense model's units, the least ones."""
        present = sum(len(score) for score in self.scores.values())
        full = sum(self.rules.full.get(name, len(score)) for name, score in self.scores.items())
        wanted = present - round((1 - share) * full)
        units = np.array([lane.units_per_step for lane in self.lanes])
        gone = np.concatenate([[0.0], np.cumsum(units[self._order])])
        return self._choice(self._levels(int(np.abs(gone - wanted).argmin())))

    def _levels(self, removed: int) -> Integers:
        """Return the level of each lane when so many of the least units are to go."""
        gone = np.bincount(self._order[:removed], minlength=len(self.lanes))
        return np.array(
            [lane.level_of[len(lane.priority) - n] for lane, n in zip(self.lanes, gone, strict=True)], dtype=np.int64
        )

    def _widths(self, states: Integers) -> Integers:
        """Return the widths of all groups (states, groups) for the levels of all lanes (states, lanes)."""
        widths = np.repeat(self.cost.full[None], len(states), axis=0)
        for place, lane in enumerate(self.lanes):
            widths[:, lane.members] = lane.widths[states[:, place]]
        return widths

    def _fraction(self, levels: Integers) -> float:
        return float(self.cost.fractions(self._widths(levels[None]))[0])

    def _refined(self, levels: Integers, target: float) -> Integers:
        """Move single lanes by one level while that brings the cost nearer to the target.

        Of the moves that do not pass the target, the one that gives up the least priority (or wins back the most).
        """
        error = self._fraction(levels) - target
        while abs(error) > FINE:
            moves = self._moves(levels, -1 if error > 0 else 1)
            if not len(moves):
                break
            errors = self.cost.fractions(self._widths(moves)) - target
            better = np.flatnonzero(np.abs(errors) < abs(error) - 1e-12)
            if not len(better):
                break
            short = better[errors[better] * np.sign(error) >= -FINE]
            values = np.array([self._value(levels, moves[i]) for i in short])
            pick = short[values.argmin()] if len(short) else better[np.abs(errors[better]).argmin()]
            levels, error = moves[pick], float(errors[pick])
        return levels

    def _moves(self, levels: Integers, direction: int) -> Integers:
        """Return all states that differ by one level of one lane."""
        top = np.array([len(lane.widths) for lane in self.lanes])
        able = np.flatnonzero((levels + direction >= 0) & (levels + direction < top))
        moves = np.repeat(levels[None], len(able), axis=0)
        moves[np.arange(len(able)), able] += direction
        return moves

    def _value(self, levels: Integers, move: Integers) -> float:
        """Return the priority that a move downwards gives up; upwards, minus what it wins."""
        place = int(np.flatnonzero(levels != move)[0])
        between = self.lanes[place].between
        return float(between[move[place]] if move[place] < levels[place] else -between[levels[place]])

    def _choice(self, levels: Integers) -> Choice:
        row = self._widths(levels[None])[0]
        widths = {name: int(width) for name, width in zip(self.cost.names, row, strict=True)}
        kept = {name: strongest(score, widths[name]) for name, score in self.scores.items()}
        return Choice(widths, kept, self._fraction(levels))


def _removal_order(lanes: Sequence[Lane]) -> Integers:
    """Return the lane of each unit, the least priority first; among the equals of a lane the weaker rank first."""
    priority = [lane.priority[::-1] for lane in lanes]
    owner = [np.full(len(lane.priority), place) for place, lane in enumerate(lanes)]
    if not lanes:
        return np.zeros(0, dtype=np.int64)
    order: Integers = np.concatenate(owner)[np.argsort(np.concatenate(priority), kind="stable")]
    return order


def strongest(score: Tensor, width: int) -> Tensor:
    """Return the sorted indices of the `width` highest scores; among equals the lower index stays."""
    return torch.sort(score.sort(descending=True, stable=True).indices[:width]).values
