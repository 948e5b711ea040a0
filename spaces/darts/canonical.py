"""One cell out of all that differ in the order of their nodes only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from spaces.darts.genotype import NODES, Node

_ORDERS = tuple(permutations(range(len(NODES))))


def canonical_nodes(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return the smallest of all cells with the same nodes in another order: only concatenated channels change."""
    return min(found for found in (_renamed(nodes, order) for order in _ORDERS) if found is not None)


def _renamed(nodes: Sequence[Node], order: Sequence[int]) -> tuple[Node, ...] | None:
    """Return the nodes in `order`; None where one would read a later one."""
    names = [0, 1, *(order.index(place) + 2 for place in range(len(NODES)))]
    found: list[Node] = []
    for state, node in zip(NODES, (nodes[place] for place in order), strict=True):
        first, second = sorted((names[read], operation) for read, operation in node)
        if second[0] >= state:
            return None
        found.append((first, second))
    return tuple(found)
