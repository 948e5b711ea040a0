"""Cells as graphs for `spaces.drawing`."""

from __future__ import annotations

from itertools import pairwise

from spaces.darts.genotype import NODES, OPERATIONS, Genotype, Kind, edges
from spaces.darts.options import DARTSConfig
from spaces.darts.skeleton import sites, stem_channels
from spaces.drawing import CellGraph, Node

_INPUTS = (Node("0", "cell before it", "input"), Node("1", "last cell", "input"))


def cell_graph(kind: Kind, genotype: Genotype) -> CellGraph:
    """Return the graph of a cell."""
    nodes, pieces = [*_INPUTS], [(str(node), "output") for node in NODES]
    for (state, node), operation in genotype.operations(kind).items():
        place = f"{state}-{node}"
        nodes.append(Node(place, _label(operation), "operation"))
        pieces += [(str(state), place), (place, str(node))]
    nodes += [Node(str(node), "+", "combine") for node in NODES]
    return CellGraph(
        "normal cell" if kind == "normal" else "reduction cell",
        (*nodes, Node("output", "output", "output")),
        tuple(pieces),
    )


def _label(operation: str) -> str:
    """Return a short name: `sep 5x5` for `sep_conv_5x5`."""
    return operation.replace("_conv", "").replace("_pool", "").replace("_connect", "").replace("_", " ")


def space_graph() -> CellGraph:
    """Return the graph of a cell with every edge that it may have."""
    nodes = [*_INPUTS, *(Node(str(node), f"two of {node}, each one of {len(OPERATIONS)}", "combine") for node in NODES)]
    pieces = [(str(state), str(end)) for node in NODES for state, end in edges(node)]
    pieces += [(str(node), "output") for node in NODES]
    return CellGraph("a cell", (*nodes, Node("output", "output", "output")), tuple(pieces))


def network_graph(config: DARTSConfig, img_size: int) -> CellGraph:
    """Return the chain of cells, those in a row as one."""
    nodes = [Node("stem", f"{config.stem} stem, {stem_channels(config)} channels", "input")]
    run = 0
    places = sites(config, img_size)
    for index, site in enumerate(places):
        run += 1
        if index + 1 < len(places) and places[index + 1].kind == site.kind == "normal":
            continue
        if site.kind == "normal":
            nodes.append(Node(f"cells{index}", f"{run} × normal cell, C = {site.channels}", "operation"))
        else:
            nodes.append(Node(f"cell{index}", f"reduction cell, C = {site.channels}", "combine"))
        run = 0
    nodes.append(Node("classifier", "classifier", "output"))
    return CellGraph("network", tuple(nodes), tuple(pairwise(node.id for node in nodes)))
