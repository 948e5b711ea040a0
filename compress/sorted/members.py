"""Which nested sub-networks make up the family."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from compress.core.errors import InputError
from compress.sorted.network import NestedNetwork
from compress.sorted.space import NestedSpace
from spaces.architecture import Architecture

MOST = 10_000
"""Members of a family; more are neither trained nor told apart by one training."""
POOL = 10
"""Random members for each one that is wanted."""

Grid = Literal["all", "diagonal"] | int | Sequence[Mapping[str, Any]]
"""All combinations, those where all dimensions shrink together, so many of them, or a list."""


def members_of(network: NestedNetwork, grid: Grid, seed: int) -> tuple[Architecture, ...]:
    """Return the members of the family: the full network is one; ascending by MACs, a list as it is.

    Raises:
        InputError: there are too many or too few, a listed one is none of the model's, or the full one is missing.
    """
    space = network.space
    if not isinstance(grid, int | str):
        return _listed(network, grid)
    count = space.count()
    if grid == "all":
        if count > MOST:
            raise InputError(
                f"sort.members: all are {count:,}; allowed at most {MOST:,}: give a number of members or diagonal, "
                "or let more widths be decided at once (sort.by)"
            )
        found = list(space)
    elif grid == "diagonal":
        found = _diagonal(space)
    else:
        if not 2 <= grid <= min(count, MOST):
            there = f", but there are {count:,} members" if count < grid else ""
            some = f"2 to {min(count, MOST):,}, " if count > 2 else ""
            raise InputError(f"sort.members: got {grid}{there}; allowed {some}all or diagonal")
        found = _some(network, grid, seed)
    return tuple(sorted(found, key=lambda arch: (network.cost(arch)["macs"], network.cost(arch)["params"])))


def _listed(network: NestedNetwork, grid: Sequence[Mapping[str, Any]]) -> tuple[Architecture, ...]:
    found = []
    for number, choices in enumerate(grid):
        try:
            found.append(network.space.check(choices))
        except InputError as error:
            raise InputError(*(f"sort.members.{number}: {text}" for text in error.problems)) from error
    if len(set(found)) < len(found):
        raise InputError("sort.members: one of them is listed twice")
    if network.full not in found:
        raise InputError(f"sort.members: the full network is missing, which is {dict(network.full)}; add it")
    return tuple(found)


def _diagonal(space: NestedSpace) -> list[Architecture]:
    """Return the members where all dimensions shrink together, from the smallest to the full network."""
    levels = max(len(decision.choices) for decision in space.decisions)
    shares = [level / max(levels - 1, 1) for level in range(levels)]
    found = [space.complete({}, lambda d, s=share: d.choices[round(s * (len(d.choices) - 1))]) for share in shares]  # type: ignore[misc]
    return list(dict.fromkeys(found))


def _some(network: NestedNetwork, count: int, seed: int) -> list[Architecture]:
    """Return `count` members: the smallest, the full one, others of the diagonal, then some of every size.

    Of several times as many random ones, those stay whose MACs lie nearest to even steps between the smallest and the
    full network.
    """
    space = network.space
    diagonal = _diagonal(space)
    found = dict.fromkeys([diagonal[0], diagonal[-1], *diagonal[1:-1]][:count])
    wanted = count - len(found)
    drawn = dict.fromkeys(arch for arch in _drawn(space, POOL * count, random.Random(seed)) if arch not in found)
    macs = {arch: network.cost(arch)["macs"] for arch in drawn}
    least, most = (network.cost(arch)["macs"] for arch in (diagonal[0], diagonal[-1]))
    for step in range(1, wanted + 1):
        aim = least + (most - least) * step / (wanted + 1)
        nearest = min(macs, key=lambda arch: abs(macs[arch] - aim))
        found[nearest] = macs.pop(nearest)
    return list(found)


def _drawn(space: NestedSpace, count: int, generator: random.Random) -> Iterator[Architecture]:
    """Yield different random members, `count` or all of them.

    Each is drawn about a size of its own: uniform choices would make nearly all of them middling.
    """
    if space.count() <= 2 * count:  # or the last ones would take long to be met by chance
        yield from generator.sample(list(space), min(count, space.count()))
        return
    seen: set[Architecture] = set()
    while len(seen) < count:
        share = generator.random()
        arch = space.complete({}, lambda d, p=share: d.choices[_heads(len(d.choices) - 1, p, generator)])  # type: ignore[misc]
        if arch not in seen:
            seen.add(arch)
            yield arch


def _heads(tosses: int, share: float, generator: random.Random) -> int:
    """Return how many of so many tosses fall on the side that has this chance."""
    return sum(generator.random() < share for _ in range(tosses))
