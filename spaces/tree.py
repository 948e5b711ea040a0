"""The tree of legal architectures: exact counts, ranks and uniform draws without listing anything.

Decisions are taken in order; whether one is taken depends on a few earlier choices (its condition's `reads`). What the
rest of the tree looks like is therefore known from the *state*: the choices of the decisions that are still to be read.
Counting runs over states, not over architectures, so 10^19 architectures take milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from spaces.architecture import Choice, Decision

State = tuple[int, ...]
"""For each decision that a later one reads: the position of its choice, or -1 where it was not taken."""


@dataclass
class Node:
    """A state before one decision: whether that is taken, where each choice leads, and how many ends lie below."""

    active: bool
    following: tuple[State, ...]
    ends: int = 0


class Tree:
    """The legal assignments of `decisions`, in lexicographic order of their choices.

    Attributes:
        levels: for each decision the node of every state before it.
    """

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self.decisions = tuple(decisions)
        self._position = {decision.name: index for index, decision in enumerate(self.decisions)}
        self._check()
        self._kept = self._names_kept()
        self.read = frozenset(name for decision in self.decisions if decision.when for name in decision.when.reads)
        self.levels = self._expand()
        self._count_ends()

    def count(self) -> int:
        """Return the number of legal assignments."""
        return self.levels[0][()].ends if self.decisions else 1

    def active(self, index: int, state: State) -> bool:
        """Return whether the decision at `index` is taken in `state`."""
        return self.levels[index][state].active

    def following(self, index: int, state: State, choice: int) -> State:
        """Return the state after the decision at `index` took the choice at position `choice` (-1: not taken)."""
        node = self.levels[index][state]
        return node.following[choice if node.active else 0]

    def unrank(self, rank: int) -> dict[str, Choice]:
        """Return assignment number `rank`, 0 <= rank < count()."""
        state: State = ()
        taken: dict[str, Choice] = {}
        for index, decision in enumerate(self.decisions):
            node = self.levels[index][state]
            if not node.active:
                state = node.following[0]
                continue
            for choice, state in zip(decision.choices, node.following, strict=True):
                ends = self._ends(index + 1, state)
                if rank < ends:
                    taken[decision.name] = choice
                    break
                rank -= ends
        return taken

    def rank(self, taken: Mapping[str, Choice]) -> int:
        """Return the number of a legal assignment, the inverse of `unrank`."""
        state: State = ()
        rank = 0
        for index, decision in enumerate(self.decisions):
            node = self.levels[index][state]
            chosen = decision.index(taken[decision.name]) if node.active else 0
            rank += sum(self._ends(index + 1, other) for other in node.following[:chosen])
            state = node.following[chosen]
        return rank

    def __iter__(self) -> Iterator[dict[str, Choice]]:
        return (self.unrank(rank) for rank in range(self.count()))

    def _ends(self, index: int, state: State) -> int:
        return self.levels[index][state].ends if index < len(self.decisions) else 1

    def _check(self) -> None:
        if len(self._position) != len(self.decisions):
            raise ValueError("two decisions have the same name")
        for index, decision in enumerate(self.decisions):
            if not decision.choices:
                raise ValueError(f"decision {decision.name!r} has no choices")
            if len(set(decision.choices)) < len(decision.choices):
                raise ValueError(f"decision {decision.name!r} has a choice twice")
            for name in decision.when.reads if decision.when else ():
                if self._position.get(name, index) >= index:
                    raise ValueError(f"decision {decision.name!r} reads {name!r}, which is not decided before it")

    def _names_kept(self) -> list[tuple[int, ...]]:
        """Return for every level the decisions before it that it or a later level reads."""
        last_read = {}
        for index, decision in enumerate(self.decisions):
            for name in decision.when.reads if decision.when else ():
                last_read[self._position[name]] = index
        levels = range(len(self.decisions) + 1)
        return [tuple(at for at in sorted(last_read) if at < level <= last_read[at]) for level in levels]

    def _expand(self) -> list[dict[State, Node]]:
        levels: list[dict[State, Node]] = []
        states: dict[State, None] = {(): None}
        for index, decision in enumerate(self.decisions):
            nodes = {}
            reached: dict[State, None] = {}
            for state in states:
                active = self._holds(index, state)
                choices = range(len(decision.choices)) if active else [-1]
                following = tuple(self._after(index, state, choice) for choice in choices)
                nodes[state] = Node(active, following)
                reached |= dict.fromkeys(following)
            levels.append(nodes)
            states = reached
        return levels

    def _holds(self, index: int, state: State) -> bool:
        when = self.decisions[index].when
        if when is None:
            return True
        known = dict(zip(self._kept[index], state, strict=True))
        taken = {name: known[self._position[name]] for name in when.reads}
        choices = {name: self.decisions[self._position[name]].choices for name in when.reads}
        return when.holds({name: choices[name][choice] for name, choice in taken.items() if choice >= 0})

    def _after(self, index: int, state: State, choice: int) -> State:
        known = dict(zip(self._kept[index], state, strict=True)) | {index: choice}
        return tuple(known[at] for at in self._kept[index + 1])

    def _count_ends(self) -> None:
        for index in range(len(self.decisions) - 1, -1, -1):
            for node in self.levels[index].values():
                node.ends = sum(self._ends(index + 1, state) for state in node.following)
