"""Cells as graphs for `spaces.drawing`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from spaces.architecture import Choice
from spaces.drawing import CellGraph, Node
from spaces.nas_bench_201.code import EDGES, NODES, OPERATIONS, edge_name

_LABELS = {"skip_connect": "skip", "nor_conv_1x1": "conv 1x1", "nor_conv_3x3": "conv 3x3", "avg_pool_3x3": "avg 3x3"}


def cell_graph(operations: Mapping[str, Choice]) -> CellGraph:
    """Return the graph of a cell; edges without an operation are left out."""
    labels = {ends: _LABELS.get(str(operations[edge_name(*ends)])) for ends in EDGES}
    return _graph("cell", {ends: label for ends, label in labels.items() if label})


def space_graph() -> CellGraph:
    """Return the graph of a cell whose edges are open."""
    return _graph("cell", dict.fromkeys(EDGES, f"one of {len(OPERATIONS)}"))


def _graph(title: str, labels: Mapping[tuple[int, int], str]) -> CellGraph:
    inner = [Node(str(node), "+", "combine") for node in range(1, NODES - 1)]
    nodes = [Node("0", "input", "input"), *inner, Node(str(NODES - 1), "output", "output")]
    edges: list[tuple[str, str]] = []
    for (source, target), label in labels.items():
        place = f"{source}-{target}"
        nodes.append(Node(place, label, "operation"))
        edges += [(str(source), place), (place, str(target))]
    return CellGraph(title, tuple(nodes), tuple(edges))


def network_graph(channels: int, cells: int) -> CellGraph:
    """Return the chain of stages."""
    nodes = [Node("stem", f"conv 3x3, {channels} channels", "input")]
    for stage, width in enumerate((channels, 2 * channels, 4 * channels)):
        if stage:
            nodes.append(Node(f"reduction{stage}", f"residual block, stride 2, {width} channels", "combine"))
        nodes.append(Node(f"stage{stage}", f"{cells} × cell, {width} channels", "operation"))
    nodes.append(Node("classifier", "classifier", "output"))
    return CellGraph("network", tuple(nodes), tuple(pairwise(node.id for node in nodes)))
