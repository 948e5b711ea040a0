"""MACs or parameters of many choices of widths at once: the formulas of a `Graph`, compiled to arrays once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compress.graph.graph import Graph, Size, evaluate, inside, layer_of

Counted = Literal["macs", "params"]
Integers = NDArray[np.int64]


class CostModel:
    """Exact integer costs of width vectors (in the order of `graph.groups`), as fractions of `dense`.

    Args:
        graph: whose groups are narrowed.
        counted: MACs of one image, or parameters.
        dropped: residual blocks that are gone.
        dense: the figure that fractions refer to; default: that of the whole graph.
    """

    def __init__(
        self, graph: Graph, counted: Counted = "macs", dropped: Collection[str] = (), dense: int | None = None
    ) -> None:
        self.counted: Counted = counted
        self._graph, self._dropped = graph, dropped
        self.names = [group.name for group in graph.groups]
        self.full = np.array([group.size for group in graph.groups], dtype=np.int64)
        self._compile(_products(graph, counted, dropped), graph.widths())
        self.dense = dense or (graph.macs() if counted == "macs" else graph.params())

    def totals(self, widths: Integers) -> Integers:
        """Return the cost of every row of `widths` (choices, groups)."""
        padded = np.concatenate([widths, np.ones((len(widths), 1), dtype=np.int64)], axis=1)
        terms = self._term_constants * padded[:, self._term_groups].prod(axis=2)
        sizes = np.add.reduceat(terms, self._size_starts, axis=1)
        sizes = np.concatenate([sizes, np.ones((len(widths), 1), dtype=np.int64)], axis=1)
        total: Integers = (self._constants * sizes[:, self._sizes].prod(axis=2)).sum(axis=1)
        return total

    def total(self, widths: Mapping[str, int] | None = None) -> int:
        """Return the cost of one choice; groups that are not named keep their width."""
        given = widths or {}
        row = [given.get(name, int(full)) for name, full in zip(self.names, self.full, strict=True)]
        return int(self.totals(np.array([row], dtype=np.int64))[0])

    def fractions(self, widths: Integers) -> NDArray[np.float64]:
        """Return the cost of every row of `widths` as a fraction of the dense figure."""
        return self.totals(widths) / self.dense

    def savings(self) -> dict[str, int]:
        """Return what removing one unit of each group saves, all others whole."""
        whole = self.totals(self.full[None])[0]
        fewer = self.totals(self.full - np.eye(len(self.full), dtype=np.int64)) if self.names else self.full
        return {name: int(whole - cost) for name, cost in zip(self.names, fewer, strict=True)}

    def by_layer(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Return what every layer costs when groups have these widths."""
        kept = {**self._graph.widths(), **widths}
        if self.counted == "macs":
            rows = [(op.layer, op.constant, op.sizes) for op in self._graph.operations]
        else:
            tensors = self._graph.tensors.items()
            rows = [(layer_of(name), 1, sizes) for name, sizes in tensors if name in self._graph.parameters]
        costs: dict[str, int] = {}
        for layer, constant, sizes in rows:
            if not inside(layer, self._dropped):
                costs[layer] = costs.get(layer, 0) + constant * prod(evaluate(size, kept) for size in sizes)
        return costs

    def _compile(self, products: Sequence[tuple[int, tuple[Size, ...]]], present: Mapping[str, int]) -> None:
        """Number the distinct sizes and write all formulas as padded index arrays; the last index stands for 1.

        Widths that stay whole go into the constants.
        """
        sizes = list(dict.fromkeys(size for _, factors in products for size in factors)) or [((1, ()),)]
        place = {size: number for number, size in enumerate(sizes)}
        group = {name: number for number, name in enumerate(self.names)}
        terms = [term for size in sizes for term in size]
        self._size_starts = np.cumsum([0, *(len(size) for size in sizes[:-1])])
        whole = [constant * prod(present[n] for n in names if n not in group) for constant, names in terms]
        self._term_constants = np.array(whole, dtype=np.int64)
        self._term_groups = _padded([[group[n] for n in names if n in group] for _, names in terms], len(self.names))
        self._constants = np.array([constant for constant, _ in products], dtype=np.int64)
        self._sizes = _padded([[place[size] for size in factors] for _, factors in products], len(sizes))


def _products(graph: Graph, counted: Counted, dropped: Collection[str]) -> list[tuple[int, tuple[Size, ...]]]:
    """Return every summand of a cost as a constant and the sizes it multiplies."""
    if counted == "macs":
        return [(op.constant, op.sizes) for op in graph.operations if not inside(op.layer, dropped)]
    return [
        (1, sizes) for name, sizes in graph.tensors.items() if name in graph.parameters and not inside(name, dropped)
    ]


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Integers:
    width = max([1, *(len(row) for row in rows)])
    return np.array([[*row, *[filler] * (width - len(row))] for row in rows], dtype=np.int64).reshape(len(rows), width)
