"""Cells as graphs for `spaces.drawing`."""

from __future__ import annotations

from itertools import pairwise

from spaces.drawing import CellGraph, Node
from spaces.nasnet.genotype import CellGenotype
from spaces.nasnet.options import NASNetConfig

_INPUTS = (Node("0", "last cell", "input"), Node("1", "cell before it", "input"))


def cell_graph(name: str, genotype: CellGenotype) -> CellGraph:
    """Return the graph of a cell; blocks that its output does not depend on are left out."""
    live = genotype.live()
    nodes = [node for node in _INPUTS if int(node.id) in live]
    edges = [(str(state), "output") for state in genotype.concat]
    for state, block in enumerate(genotype.blocks, 2):
        if state not in live:
            continue
        nodes.append(Node(str(state), "+" if block.combine == "add" else "concat", "combine"))
        for slot, (source, operation) in enumerate(((block.input1, block.op1), (block.input2, block.op2)), 1):
            place = f"{state}.{slot}"
            nodes.append(Node(place, _label(operation), "operation"))
            edges += [(str(source), place), (place, str(state))]
    return CellGraph(name, (*nodes, Node("output", "output", "output")), tuple(edges))


def _label(operation: str) -> str:
    """Return a short name: `sep 5x5` for `sep_conv_5x5`."""
    return operation.replace("_conv", "").replace("_pool", "").replace("_", " ")


def block_graph(config: NASNetConfig) -> CellGraph:
    """Return the graph of what a block of the space chooses."""
    operations = f"one of {len(config.operations)} operations"
    nodes = (
        Node("input1", "an earlier state", "input"),
        Node("input2", "an earlier state", "input"),
        Node("op1", operations, "operation"),
        Node("op2", operations, "operation"),
        Node("combine", " or ".join(config.combines), "combine"),
        Node("output", "next state", "output"),
    )
    edges = (("input1", "op1"), ("input2", "op2"), ("op1", "combine"), ("op2", "combine"), ("combine", "output"))
    return CellGraph("one of five blocks of a cell", nodes, edges)


def network_graph(config: NASNetConfig) -> CellGraph:
    """Return the chain of stages."""
    nodes = [Node("stem", f"{config.stem} stem, {config.first_channels} channels", "input")]
    if config.stem == "imagenet":
        nodes.append(Node("stem cells", "2 reduction cells", "combine"))
    for stage in (1, 2, 3):
        channels = config.filters * 2 ** (stage - 1)
        if stage > 1:
            nodes.append(Node(f"reduction{stage}", f"reduction cell, C = {channels}", "combine"))
        nodes.append(Node(f"stage{stage}", f"{config.cells_per_stage} × normal cell, C = {channels}", "operation"))
    nodes.append(Node("classifier", "classifier", "output"))
    return CellGraph("network", tuple(nodes), tuple(pairwise(node.id for node in nodes)))
