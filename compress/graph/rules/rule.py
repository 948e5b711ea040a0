"""The registry of rules and what they share.

A rule `(recording, args, kwargs, out)` enters the dimensions of an operation's results and joins, cuts or freezes those
of its operands. Positions (pixels, tokens, samples) are axes that are frozen from birth: an operation that moves or
mixes the positions along a dimension freezes what that dimension carries and gives new positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from compress.graph import axes
from compress.graph.axes import ONE, Dim
from compress.graph.recording import Recording

Rule = Callable[[Recording, Sequence[Any], dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}

SPATIAL = "it is a position, not a width"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for the operations of these names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    """Return the argument at `place` or called `name`."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def places(wanted: int | Sequence[int] | None, rank: int) -> list[int]:
    """Return the dimensions that an argument `dim` means: counted from the front; None and () mean all."""
    if wanted is None or (not isinstance(wanted, int) and len(wanted) == 0):
        return list(range(rank))
    return [place % rank for place in ([wanted] if isinstance(wanted, int) else wanted)] if rank else []


def positions(sizes: Iterable[int]) -> list[Dim]:
    """Return dimensions of positions that no width stands for."""
    return [axes.fresh(n, SPATIAL) for n in sizes]


def freeze(dims: Iterable[Dim], reason: str) -> None:
    """Keep several dimensions whole."""
    for dim in dims:
        axes.freeze(dim, reason)


def broadcast(operands: Sequence[Sequence[Dim]], rank: int) -> list[Dim]:
    """Return the dimensions of an element-wise result; operands that are not of size 1 share their axes."""
    result: list[Dim] = []
    for place in range(-rank, 0):
        found: Dim = ONE
        for dims in operands:
            if len(dims) + place >= 0 and axes.dim_size(dims[place]) != 1:
                if found == ONE:
                    found = dims[place]
                else:
                    axes.unify(found, dims[place])
        result.append(found)
    return result


def unify_equal(first: Sequence[Dim], second: Sequence[Dim], but: int, reason: str) -> None:
    """Join two lists of dimensions place by place where sizes agree and freeze both where not; `but` is left out."""
    for place, (a, b) in enumerate(zip(first, second, strict=True)):
        if place != but:
            if axes.dim_size(a) == axes.dim_size(b):
                axes.unify(a, b)
            else:
                freeze((a, b), reason)
