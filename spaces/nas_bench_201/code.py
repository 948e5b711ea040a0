"""The benchmark's way to write a cell: `|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.core.errors import InputError
from spaces.architecture import Choice, either

NODES = 4
EDGES = tuple((source, target) for target in range(1, NODES) for source in range(target))
"""From node to later node, in the order of a code: 0-1, 0-2, 1-2, 0-3, 1-3, 2-3."""
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""In the benchmark's order."""

_EXAMPLE = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"


def edge_name(source: int, target: int) -> str:
    """Return the name of the decision on an edge."""
    return f"edge_{source}_{target}"


def encode(operations: Mapping[str, Choice]) -> str:
    """Return the benchmark's text of the operation on each edge."""
    nodes = [
        "".join(f"{operations[edge_name(source, target)]}~{source}|" for source in range(target))
        for target in range(1, NODES)
    ]
    return "+".join(f"|{node}" for node in nodes)


def decode(code: Any) -> dict[str, Choice]:
    """Return the operation on each edge; a node's inputs may stand in any order.

    Raises InputError naming the node and the part of the code that is wrong.
    """
    if not isinstance(code, str) or len(nodes := code.strip().split("+")) != NODES - 1:
        raise InputError(f"a NAS-Bench-201 cell is written like {_EXAMPLE}; got {repr(code)[:120]}")
    found: dict[str, Choice] = {}
    for target, node in enumerate(nodes, 1):
        parts = node.strip().split("|")
        inputs = parts[1:-1]
        if len(inputs) != target or parts[0] or parts[-1]:
            raise InputError(f"node {target}: got {node!r}; allowed {target} operations between bars, as in {_EXAMPLE}")
        for part in inputs:
            operation, _, source = part.partition("~")
            if operation not in OPERATIONS:
                raise InputError(f"node {target}: got {part!r}; allowed are the operations {either(OPERATIONS)}")
            if source not in map(str, range(target)):
                raise InputError(f"node {target}: got {part!r}; allowed are inputs ~0 to ~{target - 1}")
            if edge_name(int(source), target) in found:
                raise InputError(f"node {target}: got {node!r}, which reads node {source} twice")
            found[edge_name(int(source), target)] = operation
    return found
