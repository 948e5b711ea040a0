"""The fewest of several things that fail together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def conflict(suspects: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """Return a smallest set of suspects that fails though none of its subsets does (QuickXplain, Junker 2004).

    All `suspects` together fail; the empty set does not.
    """

    def search(background: list[T], changed: bool, rest: list[T]) -> list[T]:
        if changed and fails(background):
            return []
        if len(rest) <= 1:
            return rest
        first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        late = search([*background, *first], bool(first), second)
        early = search([*background, *late], bool(late), first)
        return [*early, *late]

    return search([], False, list(suspects))
