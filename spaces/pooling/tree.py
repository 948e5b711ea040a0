"""The tree of placements: how many halvings are used up is all that the rest of the tree depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from spaces.architecture import Choice, Condition, Decision
from spaces.tree import State, Tree


def decision_name(unit: int) -> str:
    """Return the name of the decision whether the map is halved at `unit`."""
    return f"unit{unit}.halve"


def decisions(units: int, halvings: int) -> list[Decision]:
    """Return one decision per boundary of the chain, halving first, so that the choices run in the published order."""
    names = [decision_name(unit) for unit in range(1, units)]
    text = f"while halvings are left (of {halvings}) and fewer of them than boundaries"
    return [
        Decision(name, (True, False), Condition(text, tuple(names[:index]), _Open(halvings, units - 1 - index)))
        for index, name in enumerate(names)
    ]


class _Open:
    """Whether a boundary is free to halve or not, `boundaries` being left with it."""

    def __init__(self, halvings: int, boundaries: int) -> None:
        self.halvings, self.boundaries = halvings, boundaries

    def __call__(self, taken: Mapping[str, Choice]) -> bool:
        return 0 < self.halvings - sum(map(bool, taken.values())) < self.boundaries


class PlacementTree(Tree):
    """A tree whose state is the number of halvings so far: as small for fifty units as for ten."""

    def __init__(self, units: int, halvings: int) -> None:
        self.units, self.halvings = units, halvings
        super().__init__(decisions(units, halvings))

    def _holds(self, index: int, state: State) -> bool:
        return 0 < self.halvings - sum(state) < self.units - 1 - index

    def _after(self, index: int, state: State, choice: int) -> State:
        forced = self.halvings > sum(state) and not self._holds(index, state)
        return (sum(state) + (forced or choice == 0),)


def positions_of(taken: Mapping[str, Choice], units: int, halvings: int) -> tuple[int, ...]:
    """Return the units that halve the map, those included that have to because no other boundary is left."""
    found: list[int] = []
    for unit in range(1, units):
        left = halvings - len(found)
        if left == units - unit or (left and taken[decision_name(unit)]):
            found.append(unit)
    return tuple(found)


def choices_of(positions: Sequence[int], units: int) -> Iterator[tuple[str, bool]]:
    """Yield the decisions that are taken on the way to these positions, with their choices."""
    for unit in range(1, units):
        left = sum(position >= unit for position in positions)
        if 0 < left < units - unit:
            yield decision_name(unit), unit in positions
