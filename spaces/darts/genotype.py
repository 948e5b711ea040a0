"""The two cells of a DARTS network as data, and the published way to write them.

A cell has states: 0 is the output of the cell before the last, 1 that of the last cell, 2 to 5 are its nodes. A node is
the sum of two operations on two different earlier states; the cell concatenates its nodes.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal

from compress.core.errors import InputError
from spaces.architecture import Choice, either

NODES = (2, 3, 4, 5)
Kind = Literal["normal", "reduce"]
CELLS: tuple[Kind, ...] = ("normal", "reduce")
OPERATIONS = (
    "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"
)  # fmt: skip
"""In the published order, which begins with `none`."""
Node = tuple[tuple[int, str], tuple[int, str]]
"""Both inputs of a node as (state, operation), the earlier state first."""

_LONGEST = 4_000
_EXAMPLE = "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], reduce_concat=...)"


def edges(node: int) -> list[tuple[int, int]]:
    """Return the edges into a node from the states before it."""
    return [(state, node) for state in range(node)]


def pairs(node: int) -> tuple[str, ...]:
    """Return the choices of which two states a node reads, such as `0+1`."""
    return tuple(f"{one}+{other}" for one, other in combinations(range(node), 2))


@dataclass(frozen=True)
class Genotype:
    """The nodes of the cell that keeps the resolution, and of the one that halves it."""

    normal: tuple[Node, ...]
    reduce: tuple[Node, ...]

    def cell(self, kind: Kind) -> tuple[Node, ...]:
        """Return one of the two."""
        return self.normal if kind == "normal" else self.reduce

    def operations(self, kind: Kind) -> dict[tuple[int, int], str]:
        """Return the operation on each edge of a cell that has one, by node and then by state."""
        return {
            (state, node): name for node, inputs in zip(NODES, self.cell(kind), strict=True) for state, name in inputs
        }

    def choices(self) -> dict[str, Choice]:
        """Return the choices of the space; the first node has one pair of states only, which is no choice."""
        found: dict[str, Choice] = {}
        for kind in CELLS:
            for node, ((one, first), (other, second)) in zip(NODES, self.cell(kind), strict=True):
                if node > NODES[0]:
                    found[f"{kind}.node{node}.inputs"] = f"{one}+{other}"
                found |= {f"{kind}.node{node}.op1": first, f"{kind}.node{node}.op2": second}
        return found

    @classmethod
    def from_choices(cls, choices: Mapping[str, Choice]) -> Genotype:
        """Return the genotype of choices of the space."""
        cells: dict[str, tuple[Node, ...]] = {}
        for kind in CELLS:
            nodes = []
            for node in NODES:
                one, other = map(int, str(choices.get(f"{kind}.node{node}.inputs", "0+1")).split("+"))
                first, second = (str(choices[f"{kind}.node{node}.op{slot}"]) for slot in (1, 2))
                nodes.append(((one, first), (other, second)))
            cells[kind] = tuple(nodes)
        return cls(**cells)

    def __str__(self) -> str:
        """Return the text that the published code prints."""
        parts = []
        for kind in CELLS:
            listed = [(name, state) for node in self.cell(kind) for state, name in node]
            parts.append(f"{kind}={listed}, {kind}_concat=range(2, 6)")
        return f"Genotype({', '.join(parts)})"


def parse(code: Any) -> Genotype:
    """Return the genotype of a text as the published code prints it; the inputs of a node may stand in any order.

    It is read as a literal and never run. Raises InputError naming the cell and the node that is wrong.
    """
    found = _keywords(code)
    cells = {}
    for kind in CELLS:
        if found[f"{kind}_concat"] != list(NODES):
            got = found[f"{kind}_concat"]
            raise InputError(f"{kind}_concat: got {got!r}; a DARTS cell concatenates its nodes {list(NODES)}")
        cells[kind] = _nodes(kind, found[kind])
    return Genotype(**cells)


def _nodes(kind: str, listed: Any) -> tuple[Node, ...]:
    if not isinstance(listed, list | tuple) or len(listed) != 2 * len(NODES):
        raise InputError(f"{kind}: got {listed!r}; allowed a list of {2 * len(NODES)} pairs (operation, state)")
    for place, pair in enumerate(listed):
        node = NODES[place // 2]
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and type(pair[1]) is int):
            raise InputError(f"{kind}, node {node}: got {pair!r}; allowed a pair (operation, state)")
        if pair[0] not in OPERATIONS:
            raise InputError(f"{kind}, node {node}: got operation {pair[0]!r}; allowed {either(OPERATIONS)}")
        if not 0 <= pair[1] < node:
            raise InputError(f"{kind}, node {node}: got state {pair[1]}; allowed 0 to {node - 1}")
    nodes = []
    for node, (first, second) in zip(NODES, list(pairwise(listed))[::2], strict=True):
        if first[1] == second[1]:
            raise InputError(f"{kind}, node {node}: reads state {first[1]} twice; allowed two different states")
        (op1, one), (op2, other) = sorted((first, second), key=lambda pair: pair[1])
        nodes.append(((one, op1), (other, op2)))
    return tuple(nodes)


def _keywords(code: Any) -> dict[str, Any]:
    """Return the arguments of `Genotype(...)` as plain values."""
    wanted = {*CELLS, *(f"{kind}_concat" for kind in CELLS)}
    refusal = InputError(f"a DARTS genotype is written like {_EXAMPLE}; got {repr(code)[:120]}")
    if not isinstance(code, str) or len(code) > _LONGEST:
        raise refusal
    try:
        call = ast.parse(code.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "Genotype":
            raise refusal
        found = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise refusal from None
    if call.args or found.keys() != wanted:
        raise refusal
    return found


def _value(node: ast.expr) -> Any:
    """Return a literal, or the list of a range."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        first, last = (ast.literal_eval(argument) for argument in node.args)
        return list(range(first, min(last, first + 10)))
    value = ast.literal_eval(node)
    return list(value) if isinstance(value, tuple) else value
