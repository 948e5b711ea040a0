"""NASNet's operations, cells, stems, drop path and auxiliary head."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.meta import without_storage
from compress.export.exporters import ExportConfig, export
from evaluators.cost import count_macs, count_params
from spaces.nasnet import BlockGenotype, CellGenotype, Genotype, NASNetConfig, NASNetSpace
from spaces.nasnet.cells import Cell, DropPath
from spaces.nasnet.network import NASNet
from spaces.nasnet.operations import OPERATIONS, SameConv2d, SamePool, make_operation
from spaces.nasnet.parts import FactorizedReduction
from spaces.nasnet.skeleton import keep_probability, sites
from spaces.registry import create, open_preset


def nasnet(**options: Any) -> NASNetSpace:
    space = create("nasnet", {"cells_per_stage": 1, "filters": 4, **options})
    assert isinstance(space, NASNetSpace)
    return space


def same(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Return TensorFlow's padding before and after."""
    total = max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (5, 1), (7, 1), (3, 2)])
def test_padding_is_tensorflow_s(size: int, stride: int, kernel: int, dilation: int) -> None:
    conv = SameConv2d(2, 3, kernel, stride, dilation)
    x = torch.randn(2, 2, size, size + 1)
    pads = (*same(size + 1, kernel, stride, dilation), *same(size, kernel, stride, dilation))
    expected = F.conv2d(F.pad(x, pads), conv.weight, None, stride, 0, dilation)
    torch.testing.assert_close(conv(x), expected)
    if dilation == 1 and kernel > 1:
        expected = F.max_pool2d(F.pad(x, pads, value=-math.inf), kernel, stride)
        torch.testing.assert_close(SamePool("max", kernel, stride)(x), expected)
        sums, ones = (F.avg_pool2d(F.pad(each, pads), kernel, stride) for each in (x, torch.ones_like(x)))
        torch.testing.assert_close(SamePool("avg", kernel, stride)(x), sums / ones)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [4, 8])
def test_operations_bring_every_input_to_the_cell_s_width(name: str, stride: int, width: int) -> None:
    operation = make_operation(name, width, 4, stride, nn.BatchNorm2d)
    for size in (7, 8):
        expected = (2, 4, math.ceil(size / stride), math.ceil(size / stride))
        assert operation(torch.randn(2, width, size, size)).shape == expected


def test_factorized_reduction_sees_every_second_pixel_of_both_kinds() -> None:
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    one = SameConv2d(1, 1, 1)
    nn.init.ones_(one.weight)
    y = FactorizedReduction(one, one, nn.Identity(), relu=True)(x)
    assert y[0, 0].tolist() == [[1, 3], [7, 9]]
    assert y[0, 1].tolist() == [[5, 0], [0, 0]]  # one pixel down and right, zeros beyond the edge


def cell_of(*blocks: tuple[int, int, str, str, str]) -> CellGenotype:
    made = tuple(BlockGenotype(*block) for block in blocks)
    read = {state for block in made for state in (block.input1, block.input2)}
    return CellGenotype(made, tuple(state for state in range(7) if state not in read))


POOL, SEP, ID = "max_pool_3x3", "sep_conv_3x3", "identity"
CHAIN = cell_of((0, 0, SEP, ID, "concat"), *[(n, n, SEP, POOL, "concat") for n in (2, 3, 4, 5)])
WIDE = cell_of((0, 1, SEP, POOL, "add"), (0, 1, ID, SEP, "concat"), *[(1, 0, SEP, ID, "concat")] * 3)
UNREAD = cell_of(*[(0, 0, SEP, ID, "add")] * 5)


@pytest.mark.parametrize("genotype", [CHAIN, WIDE, UNREAD])
@pytest.mark.parametrize("size", [11, 12])
def test_cell_output_has_one_width_per_state_kept(genotype: CellGenotype, size: int) -> None:
    space = nasnet()
    arch = space.check(Genotype(genotype, genotype).choices())
    network = space.build(arch)
    maps: list[Tensor] = []
    for cell in network.get_submodule("cells").children():
        cell.register_forward_hook(lambda module, inputs, output: maps.append(output))
    network(torch.randn(2, 3, size, size))
    side, kept = size, len(genotype.concat)
    for site, output in zip(sites(space.config), maps, strict=True):
        side = math.ceil(side / site.stride)
        assert output.shape == (2, site.channels * kept, side, side)


def test_doubled_states_are_repaired_where_they_leave_the_cell() -> None:
    space = nasnet()
    network = space.build(Genotype(WIDE, UNREAD).choices())
    names = {name for name, _ in network.named_modules()}
    assert {f"cells.stage2_cell1.fits.state{state}" for state in (3, 4, 5, 6)} <= names
    assert "cells.stage2_cell1.fits.state2" not in names
    assert "cells.reduction1.fits.state1" in names  # an input that nobody reads is halved


def test_first_cell_reads_the_raw_stem_and_last_ones_are_repaired() -> None:
    space = nasnet()
    network = space.build(Genotype(WIDE, CHAIN).choices())
    first = network.get_submodule("cells.stage1_cell1")
    assert isinstance(first.get_submodule("prepare1"), nn.Identity)
    assert first.get_submodule("blocks.block1.op2.first.depthwise").weight.shape[0] == 12  # 3 F
    assert isinstance(network.get_submodule("cells.stage2_cell1.prepare1"), FactorizedReduction)


def test_input_of_the_right_shape_stays_untouched() -> None:
    space = nasnet(cells_per_stage=3)
    chain = cell_of((0, 1, SEP, SEP, "add"), *[(n, n, SEP, POOL, "add") for n in (2, 3, 4, 5)])
    network = space.build(Genotype(chain, chain).choices())
    assert isinstance(network.get_submodule("cells.stage2_cell3.prepare1"), nn.Identity)
    assert not isinstance(network.get_submodule("cells.stage2_cell3.prepare0"), nn.Identity)


def test_odd_maps_are_halved_rounding_up() -> None:
    space, arch = open_preset("nasnet", "nasnet-a-mobile")
    for size, expected in ((224, [111, 56, 28]), (168, [83, 42, 21])):
        rows = space.layers(arch, space.task(img_size=size))
        assert rows is not None
        assert [row.size for row in rows[:3]] == expected
        images = torch.empty(1, 3, size, size, device="meta")
        with torch.device("meta"):
            network = space.build(arch, space.task(img_size=size)).eval()
        cells = network.get_submodule("cells")
        stem = network.get_submodule("stem")(images)
        first = cells.get_submodule("stem1")(stem, stem)
        assert first.shape[-1] == expected[1]
        assert cells.get_submodule("stem2")(first, stem).shape[-1] == expected[2]


ODD: list[tuple[dict[str, Any], int]] = [
    ({}, 32),
    ({"stem_channels": 4}, 29),
    ({"stem_channels": 8, "cells_per_stage": 2}, 17),
    ({"stem": "imagenet", "filters": 12, "stem_channels": 6}, 75),  # 3 channels in the first cell, odd maps
    ({"stem": "imagenet", "filters": 20, "stem_channels": 10, "wiring": "large", "auxiliary": True}, 132),
    ({"concat": {"normal": [0, 4], "reduction": [1, 3]}}, 18),
]


@pytest.mark.parametrize(("options", "size"), ODD)
def test_predicted_cost_is_the_counted_cost(options: dict[str, Any], size: int) -> None:
    space, generator = nasnet(**options), random.Random(1)
    for _ in range(5):
        arch = space.sample(generator)
        with without_storage():
            network = space.build(arch, space.task(img_size=size))
            images = torch.empty(1, 3, size, size)
        macs = count_macs(network, images)
        assert space.cost(arch, space.task(img_size=size)) == {"params": count_params(network)[0], "macs": macs}


def test_drop_path_follows_the_schedule() -> None:
    config = NASNetConfig(cells_per_stage=6, drop_path_keep=0.6)
    cells = len(sites(config))
    assert cells == 20
    assert keep_probability(config, cells - 1) == pytest.approx(0.6)
    assert keep_probability(config, 4) == pytest.approx(1 - 5 / 20 * 0.4)
    drop_path = DropPath(keep_probability(config, cells - 1))
    assert drop_path.probability == 1
    drop_path.progress = 0.5
    assert drop_path.probability == pytest.approx(0.8)
    with_stem = NASNetConfig(stem="imagenet", cells_per_stage=4, filters=44)
    assert len(sites(with_stem)) == 16


def test_drop_path_drops_examples_and_scales_the_others() -> None:
    torch.manual_seed(0)
    drop_path = DropPath(0.6)
    drop_path.progress = 1.0
    kept = drop_path(torch.ones(4000, 2, 3, 3)).flatten(1)
    assert ((kept == 0).all(1) | (kept == 1 / 0.6).all(1)).all()
    assert (kept[:, 0] > 0).float().mean() == pytest.approx(0.6, abs=0.03)
    x = torch.ones(8, 1, 1, 1)
    assert torch.equal(drop_path.eval()(x), x)


def regularised(op: str) -> tuple[NASNet, Tensor]:
    cell = cell_of(*[(0, 1, op, op, "add")] * 5)
    network = nasnet(drop_path_keep=0.3).build(Genotype(cell, cell).choices())
    assert isinstance(network, NASNet)
    return network, torch.randn(8, 3, 16, 16)


def test_identity_edges_are_never_dropped() -> None:
    network, images = regularised("identity")
    first = network.get_submodule("cells.stage2_cell1")
    assert isinstance(first, Cell)
    before = network(images)
    network.set_training_progress(1.0)
    assert torch.equal(network(images), before)
    assert first.drop_path.probability == pytest.approx(1 - 3 / 5 * 0.7)


def test_training_drops_more_paths_as_it_goes_on_and_evaluation_none() -> None:
    network, images = regularised("conv_1x1")
    before = network(images)
    assert torch.equal(network(images), before)  # nothing is dropped at the start
    network.set_training_progress(1.0)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_auxiliary_head_speaks_in_training_only() -> None:
    space = nasnet(auxiliary=True)
    network = space.build(space.sample(random.Random(0)))
    logits, auxiliary = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == auxiliary.shape == (2, 10)
    assert network.auxiliary_weight == 0.4
    assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_tasks_that_cannot_be_served_are_refused() -> None:
    space = nasnet(auxiliary=True)
    arch = space.sample(random.Random(0))
    with pytest.raises(InputError, match=r"5x5 pixels after stage 2; img_size 8 is too small"):
        space.build(arch, space.task(img_size=8))
    with pytest.raises(InputError, match="at least 3 pixels; got img_size 2"):
        nasnet(stem="imagenet").cost(arch, nasnet(stem="imagenet").task(img_size=2))


def test_other_image_sizes_work_without_rebuilding() -> None:
    space = nasnet()
    network = space.build(space.sample(random.Random(4)), space.task(num_outputs=7, in_chans=1)).eval()
    for shape in ((32, 32), (19, 26), (5, 3)):
        assert network(torch.randn(1, 1, *shape)).shape == (1, 7)


@pytest.mark.parametrize(
    ("exporter", "seed", "size"),
    [
        ("torchscript", 0, 32),
        ("torchscript", 1, 30),
        ("torchscript", 2, 31),
        pytest.param("dynamo", 2, 31, marks=pytest.mark.slow),
    ],
)
def test_networks_export_with_parity(exporter: Any, seed: int, size: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    space = nasnet()
    network = space.build(space.sample(random.Random(seed)), space.task(img_size=size))
    for _ in range(3):
        network(torch.randn(16, 3, size, size))  # statistics that are not 0 and 1
    result = export(network, torch.randn(2, 3, size, size), tmp_path / "m.onnx", ExportConfig(exporter=exporter))
    assert result.parity_max_rel <= 1e-4
