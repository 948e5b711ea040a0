from __future__ import annotations

import random
from itertools import permutations

import pytest
import torch
from torch import nn

from compress.core.errors import InputError
from compress.testing.spaces import check_cost, check_supernet, enliven, in_double
from spaces.architecture import Architecture
from spaces.darts import DARTSSpace
from spaces.darts.genotype import CELLS, OPERATIONS, Genotype
from spaces.darts.presets import V2
from spaces.registry import create, open_preset, presets

SMALL = {"channels": 4, "layers": 3}


def opened(**options: object) -> DARTSSpace:
    found = create("darts", {**SMALL, **options})
    assert isinstance(found, DARTSSpace)
    return found


@pytest.fixture(scope="module")
def space() -> DARTSSpace:
    return opened()


def samples(space: DARTSSpace, count: int) -> list[Architecture]:
    generator = random.Random(0)
    return [space.sample(generator) for _ in range(count)]


def test_counts_pairs_of_states_and_operations(space: DARTSSpace) -> None:
    pairs = 1 * 3 * 6 * 10
    assert space.count() == (pairs * 7**8) ** 2 == 1_076_746_950_455_072_400


def test_genotypes_go_both_ways(space: DARTSSpace) -> None:
    arch = space.parse(V2)
    assert arch["normal.node5.inputs"] == "0+2" and arch["normal.node5.op2"] == "dil_conv_3x3"
    assert "normal.node2.inputs" not in arch  # the first node has no choice
    text = space.to_code(arch)
    assert text.startswith("Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ")
    assert "('skip_connect', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=" in text
    assert text.endswith("reduce_concat=range(2, 6))")
    assert space.parse(text) == arch
    assert all(space.parse(space.to_code(each)) == each for each in samples(space, 50))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (V2, "NASNet(normal=[])", "a DARTS genotype is written like Genotype"),
        ("reduce_concat", "reduced", "a DARTS genotype is written like Genotype"),
        (V2, "__import__('os').system('true')", "a DARTS genotype is written like"),
        (V2, "(" * 3000, "a DARTS genotype is written like"),
        (V2, "Genotype(" + "'x'," * 2000 + ")", "a DARTS genotype is written like"),
        ("[2, 3, 4, 5], reduce=", "range(2, 10 ** 9), reduce=", "a DARTS genotype is written like"),
        ("[2, 3, 4, 5], reduce=", "range(2, 5), reduce=", r"normal_concat: got \[2, 3, 4\]; .* nodes \[2, 3, 4, 5\]"),
        ("('dil_conv_3x3', 2)", "('conv', 2)", "normal, node 5: got operation 'conv'; allowed max_pool_3x3, avg"),
        ("('dil_conv_3x3', 2)", "('none', 2)", "normal, node 5: got operation 'none'; allowed max_pool_3x3, avg"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)", "normal, node 5: got state 5; allowed 0 to 4"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 0)", "normal, node 5: reads state 0 twice"),
        ("('dil_conv_3x3', 2)", "'dil_conv_3x3'", "normal, node 5: got 'dil_conv_3x3'; allowed a pair"),
        (", ('dil_conv_3x3', 2)", "", "normal: got .*; allowed a list of 8 pairs"),
    ],
)
def test_wrong_genotypes_are_refused_by_cell_and_node(space: DARTSSpace, old: str, new: str, sentence: str) -> None:
    assert old in V2
    with pytest.raises(InputError, match=sentence) as error:
        space.parse(V2.replace(old, new))
    assert len(error.value.problems) == 1


def test_presets_open() -> None:
    for name, preset in presets("darts").items():
        space, arch = open_preset("darts", name)
        assert (arch is None) == (preset.code is None)
        assert arch is None or space.parse(space.to_code(arch)) == arch


def test_nodes_in_another_order_are_the_same_cell(space: DARTSSpace) -> None:
    """Node 3 and 4 of V2's normal cell read inputs only, and node 5 reads node 2."""
    arch = space.parse(V2)
    nodes = {node: [(arch[f"normal.node{node}.op{slot}"], slot - 1) for slot in (1, 2)] for node in (2, 3, 4)}
    found = set()
    for order in permutations((2, 3, 4)):
        cell = [
            *(pair for node in order for pair in nodes[node]),
            ("skip_connect", 0),
            ("dil_conv_3x3", order.index(2) + 2),
        ]
        found.add(space.canonical(space.parse(f"Genotype(normal={cell}, {V2.split(', ', 16)[-1]}")))
    assert found == {space.canonical(arch)}
    assert space.canonical(space.parse(V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 1)"))) not in found


def test_cells_are_wired_as_published(space: DARTSSpace) -> None:
    network = space.build(space.parse(V2)).eval()
    enliven(network)
    x = torch.randn(2, 3, 8, 8)
    stem = network.stem[0](x)
    outputs = [stem, stem]
    for cell, kind in zip(network.cells, ("normal", "reduce", "reduce"), strict=True):
        states = [cell.prepare0(outputs[-2]), cell.prepare1(outputs[-1])]
        genotype = Genotype.from_choices(space.parse(V2)).cell(kind)
        for node, inputs in enumerate(genotype, 2):
            states.append(sum(cell.edges[f"{state}_{node}"](states[state]) for state, _ in inputs))
        outputs.append(torch.cat(states[2:], 1))
    torch.testing.assert_close(network(x), network.classifier(outputs[-1].mean((2, 3))))
    assert [output.shape[1:] for output in outputs[2:]] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]


def test_operations_are_the_published_ones(space: DARTSSpace) -> None:
    space = opened(norm="search")
    arch = {name: choice for name, choice in space.parse(V2).items()}
    for name in OPERATIONS:
        arch["normal.node2.op1"] = arch["reduce.node2.op1"] = name
        network = space.build(arch)
        normal, reduce = network.cells[0].edges["0_2"], network.cells[1].edges["0_2"]
        convs = [part for part in normal.modules() if isinstance(part, nn.Conv2d)]
        depthwise = [conv for conv in convs if conv.groups > 1]
        kernel = int(name[-1]) if "conv" in name else 0
        assert [conv.kernel_size[0] for conv in depthwise] == [kernel] * (
            2 if "sep" in name else 1 if "dil" in name else 0
        )
        assert all(conv.dilation[0] == (2 if "dil" in name else 1) for conv in depthwise)
        assert reduce(torch.randn(2, 8, 8, 8)).shape == (2, 8, 4, 4)
        assert reduce(torch.randn(2, 8, 7, 7)).shape == (2, 8, 4, 4)
        assert ("pool" in name) == any(isinstance(part, nn.BatchNorm2d) for part in normal.modules() if not convs)
    assert not [name for name, _ in network.cells.named_parameters() if "norm" in name]  # no affine parameters


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"stem": "imagenet", "norm": "search", "channels": 5, "layers": 4}, 61),
        ({"auxiliary": True, "layers": 5}, 33),
        ({"stem": "imagenet", "auxiliary": True}, 140),
    ],
    ids=str,
)
def test_every_stem_head_and_norm_costs_what_is_predicted_and_is_shared(options: dict[str, object], size: int) -> None:
    space = opened(**options)
    task = space.task(5, 2, size)
    with in_double():
        net = space.supernet(task)
        enliven(net)
        for arch in samples(space, 2):
            check_cost(space, arch, task)
            check_supernet(net, arch, torch.randn(2, 2, size, size))


def test_an_auxiliary_head_needs_a_map_to_pool() -> None:
    space = opened(auxiliary=True)
    for call in (space.cost, space.build):
        with pytest.raises(InputError, match="at least 5x5 pixels behind the second halving; img_size 16"):
            call(space.parse(V2), space.task(img_size=16))
    with pytest.raises(InputError, match="img_size 16 is too small"):
        space.supernet(space.task(img_size=16))


def test_outputs_are_dropped_as_training_goes_on_but_identities_never() -> None:
    space = opened(drop_path_keep=0.5, auxiliary=True)
    skips = {decision.name: "skip_connect" for decision in space.decisions if ".op" in decision.name}
    arch = space.check({**space.parse(V2), **skips})
    net = space.supernet()
    net.activate(arch)
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    for network in (net.network, space.build(arch)):
        network.train().set_training_progress(1.0)
        for cell, dropped in zip(network.cells, (False, True), strict=False):  # to halve, a skip is a convolution
            width = 16 if dropped else 12
            inputs = torch.randn(4, 12, 8, 8), torch.randn(4, width, 8, 8)
            outputs = [cell(*inputs) for _ in range(8)]
            assert all(torch.equal(output, outputs[0]) for output in outputs) is not dropped
        logits, auxiliary = network(x)
        assert logits.shape == auxiliary.shape == (4, 10)


def test_strengths_stand_for_the_two_strongest_edges_of_each_node(space: DARTSSpace) -> None:
    net = space.supernet()
    weights = {name: torch.full((8,), 0.01) for name in net.mixtures()}
    assert len(weights) == 28
    names = ("none", *OPERATIONS)

    def strengthen(edge: str, operation: str, weight: float) -> None:
        weights[edge][names.index(operation)] = weight

    strengthen("normal_0_4", "none", 0.99)  # none never counts
    strengthen("normal_1_4", "sep_conv_5x5", 0.3)
    strengthen("normal_3_4", "skip_connect", 0.4)
    strengthen("normal_3_4", "dil_conv_5x5", 0.35)
    strengthen("reduce_4_5", "dil_conv_3x3", 0.02)
    arch = net.decode(weights)
    assert (arch["normal.node4.inputs"], arch["normal.node4.op1"], arch["normal.node4.op2"]) == (
        "1+3", "sep_conv_5x5", "skip_connect"
    )  # fmt: skip
    assert (arch["reduce.node5.inputs"], arch["reduce.node5.op1"], arch["reduce.node5.op2"]) == (
        "0+4", "max_pool_3x3", "dil_conv_3x3"
    )  # fmt: skip
    assert arch["normal.node3.inputs"] == "0+1"


def test_weights_are_of_each_cell_edge_and_operation(space: DARTSSpace) -> None:
    net = space.supernet()
    first, second = (net.inherited(space.parse(code)) for code in (V2, V2.replace("dil_conv_3x3", "dil_conv_5x5")))
    shared = "cells.0.edges.0_2.0.depthwise.weight"
    assert first[shared].data_ptr() == second[shared].data_ptr()
    assert first[shared].data_ptr() != first["cells.0.edges.0_3.0.depthwise.weight"].data_ptr()
    assert first["cells.0.edges.2_5.depthwise.weight"].shape[2:] == (3, 3)
    assert second["cells.0.edges.2_5.depthwise.weight"].shape[2:] == (5, 5)


def test_pictures_show_both_cells(space: DARTSSpace) -> None:
    picture = space.draw(space.parse(V2))
    assert [picture.count(f">{label}</text>") for label in ("sep 3x3", "dil 3x3", "max 3x3", "skip")] == [5, 1, 5, 5]
    assert "1.08e+18 pairs of cells" in space.draw()
    assert all(f">{'reduction' if kind == 'reduce' else kind} cell</text>" in picture for kind in CELLS)
