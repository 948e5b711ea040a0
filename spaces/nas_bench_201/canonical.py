"""Which cells are the same network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, combinations, permutations, product
from typing import Any

from spaces.nas_bench_201.code import EDGES, NODES, OPERATIONS

Cell = tuple[str, ...]
"""The operation on each edge."""
Value = tuple[Any, ...]
"""What a node holds: its sorted summands, each (operation, number of the convolution, value of its input)."""

_CONVS = ("nor_conv_1x1", "nor_conv_3x3")
_FREE = tuple(name for name in OPERATIONS if name not in _CONVS)
_INPUT: Value = (("input", 0, ()),)


def smallest_equal(cell: Cell) -> Cell:
    """Return the first of all cells that are the same network as `cell`: equal up to the order of sums.

    The same are cells whose outputs are the same expression of as many convolutions of each size, if a skip is its
    input, an empty sum nothing, and the convolutions are matched one to one: two edges that read the same convolution
    share its weights, two equal convolutions do not. Convolutions that the output does not depend on count.
    """
    return _classes(tuple(cell.count(name) for name in _CONVS))[cell]


@cache
def _classes(counts: Sequence[int]) -> Mapping[Cell, Cell]:
    """Return the smallest equal cell for each with so many convolutions of each size."""
    smallest: dict[Any, Cell] = {}
    return {cell: smallest.setdefault(_form(cell), cell) for cell in sorted(_cells(counts), key=_rank)}


def _cells(counts: Sequence[int]) -> Iterator[Cell]:
    ones, threes = counts
    for place in combinations(range(len(EDGES)), ones + threes):
        for small in combinations(place, ones):
            for names in product(_FREE, repeat=len(EDGES) - len(place)):
                free = iter(names)
                yield tuple(_CONVS[index not in small] if index in place else next(free) for index in range(len(EDGES)))


def _rank(cell: Cell) -> list[int]:
    return [OPERATIONS.index(name) for name in cell]


def _form(cell: Cell) -> Value:
    """Return what all cells share that are the same network.

    Convolutions that cannot be told apart by what they compute are numbered in every order, and the smallest output
    counts: what is left of the numbers is which convolutions the summands share.
    """
    values, live = _values(cell, {}), _live(cell)
    alike: dict[Any, list[int]] = {}
    for index in live:
        if cell[index] in _CONVS:
            alike.setdefault((cell[index], values[EDGES[index][0]]), []).append(index)
    orders = product(*(permutations(alike[key]) for key in sorted(alike)))
    numbers = range(1, sum(map(len, alike.values())) + 1)
    return min(_values(cell, dict(zip(chain(*order), numbers, strict=True)))[-1] for order in orders)


def _live(cell: Cell) -> list[int]:
    """Return the edges that the output depends on."""
    nodes, edges = {NODES - 1}, []
    for index, (source, target) in reversed(list(enumerate(EDGES))):
        if target in nodes and cell[index] != "none":
            nodes.add(source)
            edges.append(index)
    return edges


def _values(cell: Cell, numbers: Mapping[int, int]) -> list[Value]:
    """Return the value of every node; convolutions have the numbers of their edges, 0 without one."""
    nodes = [_INPUT]
    for target in range(1, NODES):
        summands: list[Any] = []
        for index, (source, end) in enumerate(EDGES):
            if end != target or cell[index] == "none":
                continue
            if cell[index] == "skip_connect":
                summands += nodes[source]
            elif nodes[source] or cell[index] in _CONVS:  # a pooled nothing is nothing
                summands.append((cell[index], numbers.get(index, 0), nodes[source]))
        nodes.append(tuple(sorted(summands)))
    return nodes
