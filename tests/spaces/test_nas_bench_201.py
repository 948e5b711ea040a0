from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations, product

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.testing.spaces import enliven
from spaces.architecture import Architecture
from spaces.nas_bench_201 import NASBench201Space
from spaces.nas_bench_201.code import EDGES, OPERATIONS, edge_name
from spaces.registry import create, open_preset, presets

RESNET = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"


@pytest.fixture(scope="module")
def space() -> NASBench201Space:
    found = create("nas_bench_201", {"channels": 4, "cells": 1})
    assert isinstance(found, NASBench201Space)
    return found


def cell(*operations: str) -> dict[str, str]:
    """Operations by their first letters on the edges 01, 02, 12, 03, 13, 23."""
    short = {"n": "none", "s": "skip_connect", "1": "nor_conv_1x1", "3": "nor_conv_3x3", "a": "avg_pool_3x3"}
    return {edge_name(*ends): short[letter] for ends, letter in zip(EDGES, "".join(operations), strict=True)}


def test_six_edges_with_five_operations(space: NASBench201Space) -> None:
    assert [decision.choices for decision in space.decisions] == [OPERATIONS] * 6
    assert space.count() == 5**6 == 15_625


def test_codes_go_both_ways(space: NASBench201Space) -> None:
    arch = space.parse(RESNET)
    assert arch == cell("3n3", "sns")
    assert space.to_code(arch) == RESNET
    assert space.parse("|nor_conv_3x3~0|+|nor_conv_3x3~1|none~0|+|none~1|skip_connect~2|skip_connect~0|") == arch
    codes = {space.to_code(arch) for arch in space}
    assert len(codes) == 15_625
    assert all(space.to_code(space.parse(code)) == code for code in random.Random(0).sample(sorted(codes), 200))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (7, "a NAS-Bench-201 cell is written like .*; got 7"),
        ("|nor_conv_3x3~0|+|none~0|none~1|", "a NAS-Bench-201 cell is written like"),
        (RESNET.replace("nor_conv_3x3~0", "conv~0"), "node 1: got 'conv~0'; allowed are the operations none, skip"),
        (RESNET.replace("skip_connect~2", "skip_connect~3"), "node 3: got 'skip_connect~3'; .* inputs ~0 to ~2"),
        (RESNET.replace("none~1", "none"), "node 3: got 'none'; allowed are inputs ~0 to ~2"),
        (RESNET.replace("none~1", "none~2"), "node 3: got .*, which reads node 2 twice"),
        (RESNET.replace("none~1|", ""), "node 3: got .*; allowed 3 operations between bars"),
        (RESNET.removesuffix("|"), "node 3: got .*; allowed 3 operations between bars"),
    ],
)
def test_wrong_codes_are_refused_by_node(space: NASBench201Space, code: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        space.parse(code)
    assert len(error.value.problems) == 1


def test_images_that_cannot_be_halved_twice_are_refused(space: NASBench201Space) -> None:
    for call in (space.build, space.cost):
        with pytest.raises(InputError, match="multiple of 4; got 30"):
            call(space.parse(RESNET), space.task(img_size=30))
    with pytest.raises(InputError, match="multiple of 4; got 30"):
        space.supernet(space.task(img_size=30))


def test_presets_open() -> None:
    for name, preset in presets("nas_bench_201").items():
        space, arch = open_preset("nas_bench_201", name)
        assert (arch is None) == (preset.code is None)
        assert arch is None or space.to_code(arch) == preset.code


def test_a_cell_is_the_published_graph(space: NASBench201Space) -> None:
    layer = space.build(cell("13a", "sn3")).eval().layers[0]
    x = torch.randn(2, 4, 8, 8)
    edges = layer.edges
    first = edges["edge_0_1"](x)
    second = edges["edge_0_2"](x) + edges["edge_1_2"](first)
    torch.testing.assert_close(layer(x), x + edges["edge_2_3"](second))
    torch.testing.assert_close(edges["edge_1_2"](torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))  # padding left out
    assert torch.equal(edges["edge_0_1"](-x.abs()), edges["edge_0_1"](torch.zeros_like(x)))  # ReLU comes first


def test_rows_show_the_two_halvings() -> None:
    space = create("nas_bench_201")
    rows = space.layers(space.parse(RESNET)) or []
    assert [row.size for row in rows] == [32] * 6 + [16] * 6 + [8] * 6 + [1]
    assert [row.out_channels for row in rows] == [16] * 6 + [32] * 6 + [64] * 6 + [10]
    assert [row.name for row in rows if row.stride == 2] == ["reduction1", "reduction2"]


class Stage(nn.Module):
    """A cell on vectors: every convolution and the pooling are functions without any law, all at 0 but convolutions."""

    def __init__(self, operations: Mapping[str, str]) -> None:
        super().__init__()
        self.operations = [operations[edge_name(*ends)] for ends in EDGES]

    def forward(self, x: Tensor, parameters: Sequence[float]) -> Tensor:
        nodes = [x, 0 * x, 0 * x, 0 * x]
        for (source, target), name, parameter in zip(EDGES, self.operations, parameters, strict=True):
            here = nodes[source]
            value = {
                "none": 0 * here,
                "skip_connect": here,
                "avg_pool_3x3": here.sin() * 1.7,
                "nor_conv_1x1": (here * parameter).cos() + parameter,
                "nor_conv_3x3": (here * parameter + 0.5).cos() - parameter,
            }[name]
            nodes[target] = nodes[target] + value
        return nodes[3]


def are_equal(one: Architecture, other: Architecture) -> bool:
    """Whether some assignment of the convolutions of one cell to those of the other makes them compute the same."""
    x = torch.tensor([0.3, -0.8], dtype=torch.float64)
    parameters = [0.4, 0.7, 1.1, 1.3, 1.9, 2.3]
    wanted = Stage(one)(x, parameters)
    convs = {
        name: [[index for index, ends in enumerate(EDGES) if arch[edge_name(*ends)] == name] for arch in (one, other)]
        for name in ("nor_conv_1x1", "nor_conv_3x3")
    }
    if any(len(mine) != len(theirs) for mine, theirs in convs.values()):
        return False
    for orders in product(*(permutations(mine) for mine, _ in convs.values())):
        given = [0.0] * 6
        for order, (_, theirs) in zip(orders, convs.values(), strict=True):
            for mine, place in zip(order, theirs, strict=True):
                given[place] = parameters[mine]
        if torch.allclose(Stage(other)(x, given), wanted, rtol=1e-9, atol=1e-12):
            return True
    return False


def test_cells_with_one_canonical_form_compute_the_same_and_no_others(space: NASBench201Space) -> None:
    generator = random.Random(0)
    archs = [space.sample(generator) for _ in range(150)]
    changed = [arch for arch in archs if space.canonical(arch) != arch]
    assert len(changed) > 60
    assert all(are_equal(arch, space.canonical(arch)) for arch in changed)
    forms = {arch: list(arch.values()).count("nor_conv_3x3") for arch in map(space.canonical, space)}
    assert len(forms) == 6_245
    few = sorted((arch for arch, convs in forms.items() if convs == 5), key=lambda arch: arch.to_json())
    for one, other in pairwise(few):
        assert not are_equal(one, other)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("3n13n1", "n1331n", False),  # nodes 1 and 2 change places only where no edge joins them
        ("31n13n", "13n3n1", False),
        ("31n1n3", "13n13n", True),  # they do here
        ("s13n3n", "s3113n", False),
        ("s13na3", "s31na3", True),  # node 1 is the input, so both edges into node 2 start there
        ("3nsnss", "33nnss", False),  # twice the same convolution, or two of them
        ("an3snn", "nn3snn", True),  # nobody hears of node 1
        ("1n3snn", "nn3snn", False),  # a dead convolution is part of the network
        ("nsa1sn", "ns11sn", False),
        ("nsa1sn", "nsn1nn", True),  # what comes out of an empty node is nothing
    ],
)
def test_which_cells_are_the_same_network(space: NASBench201Space, one: str, other: str, same: bool) -> None:
    assert (space.canonical(cell(one)) == space.canonical(cell(other))) is same


def test_canonical_form_of_the_same_weights_computes_the_same(space: NASBench201Space) -> None:
    one, other = cell("31n1n3"), cell("13n13n")
    torch.manual_seed(0)
    first, second = space.build(one).eval(), space.build(other).eval()
    enliven(first)
    moved = {"edge_0_1": "edge_0_2", "edge_0_2": "edge_0_1", "edge_2_3": "edge_1_3", "edge_0_3": "edge_0_3"}
    state = {}
    for name, tensor in first.state_dict().items():
        edge = next((edge for edge in moved if edge in name), None)
        state[name.replace(edge, moved[edge]) if edge else name] = tensor
    second.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(first(x), second(x))


def test_every_cell_has_its_own_weights_for_every_operation(space: NASBench201Space) -> None:
    net = space.supernet()
    states = [net.inherited(space.parse(code)) for code in (RESNET, RESNET.replace("nor_conv_3x3~1", "nor_conv_1x1~1"))]
    shared = "layers.0.edges.edge_0_1.conv.weight"
    assert states[0][shared].data_ptr() == states[1][shared].data_ptr()
    other = "layers.0.edges.edge_1_2.conv.weight"
    assert states[0][other].shape[2:] == (3, 3) and states[1][other].shape[2:] == (1, 1)
    assert states[0][other].data_ptr() != states[0]["layers.2.edges.edge_1_2.conv.weight"].data_ptr()


def test_pictures_leave_out_what_is_not_there(space: NASBench201Space) -> None:
    picture = space.draw(space.parse(RESNET))
    labels = [picture.count(f">{label}</text>") for label in ("conv 3x3", "skip", "conv 1x1", "avg 3x3", "none")]
    assert labels == [2, 2, 0, 0, 0]
    assert "15,625 cells" in space.draw()
