"""MobileNets, LR-ASPP, MnasNet and NAS-Bench-Macro against published figures and against timm and torchvision."""

from __future__ import annotations

import copy
import csv
import gzip
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from evaluators.cost import count_macs, count_params
from spaces.mobilenet.network import MobileNet
from spaces.mobilenet.tables import NetworkRows, layers, mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small
from spaces.registry import create, open_preset
from spaces.space import task_of

TASK = task_of(1000, 3, 96)


def counts(network: nn.Module, size: int) -> tuple[int, int]:
    return count_params(network)[0], count_macs(network, torch.empty(1, 3, size, size, device="meta"))


@pytest.mark.parametrize(
    ("rows", "params", "macs"),
    [  # papers: 5.4 M / 219 M, 4.0 / 155, 2.5 / 56, 2.0 / 44 (Howard et al.); 3.4 / 300, 1.6 / 59.2 (Sandler et al.)
        (mobilenet_v3_large(), 5_483_032, 216_589_760),
        (mobilenet_v3_large(0.75), 3_993_528, 154_560_624),
        (mobilenet_v3_small(), 2_542_856, 56_510_400),
        (mobilenet_v3_small(0.75), 2_041_872, 43_399_344),
        (mobilenet_v2(), 3_504_872, 300_774_272),
        (mobilenet_v2(0.35), 1_677_128, 59_285_808),
        (mobilenet_v2(1.4), 6_108_776, 582_195_824),
    ],
)
def test_published_widths(rows: NetworkRows, params: int, macs: int) -> None:
    described = layers(rows, task_of())
    assert (sum(row.params for row in described), sum(row.macs for row in described)) == (params, macs)
    with torch.device("meta"):
        assert counts(MobileNet(rows, task_of()), 224) == (params, macs)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("mobilenetv3_large_075", mobilenet_v3_large(0.75)),
        ("mobilenetv3_small_075", mobilenet_v3_small(0.75)),
        ("mobilenetv2_035", mobilenet_v2(0.35)),
        ("mobilenetv2_140", mobilenet_v2(1.4)),
    ],
)
def test_widths_equal_timm(name: str, rows: NetworkRows) -> None:
    with torch.device("meta"):
        assert counts(MobileNet(rows, task_of()), 224) == counts(timm.create_model(name), 224)


@pytest.mark.parametrize(
    ("rows", "millions"),
    [  # Howard et al., section 6.1.1, print 282 / 160 / 112 / 73 / 43 and 74 / 30 / 20 / 12
        (mobilenet_v3_large(), {256: 281.66, 192: 160.19, 160: 112.47, 128: 73.43, 96: 43.06}),
        (mobilenet_v3_small(), {256: 73.18, 160: 29.85, 128: 19.85, 96: 12.07}),
    ],
)
def test_published_resolutions(rows: NetworkRows, millions: Mapping[int, float]) -> None:
    for size, expected in millions.items():
        macs = sum(row.macs for row in layers(rows, task_of(1000, 3, size)))
        assert round(macs / 1e6, 2) == expected
        with torch.device("meta"):
            assert counts(MobileNet(rows, task_of()), size)[1] == macs


@pytest.mark.parametrize(("preset", "params", "macs"), [("a1", 3_887_038, 311.579), ("b1", 4_383_312, 314.416)])
def test_mnasnet_points(preset: str, params: int, macs: float) -> None:
    # Tan et al., table 1: A1 has 3.9 M parameters and 312 M MACs
    space, arch = open_preset("mnasnet", preset)
    assert arch is not None
    cost = space.cost(arch)
    assert (cost["params"], round(cost["macs"] / 1e6, 3)) == (params, macs)
    with torch.device("meta"):
        assert counts(space.build(arch), 224) == (params, cost["macs"])


@pytest.mark.parametrize(("preset", "name"), [("a1", "semnasnet_100"), ("b1", "mnasnet_100")])
def test_mnasnet_computes_what_timm_does(preset: str, name: str) -> None:
    space, arch = open_preset("mnasnet", preset)
    assert arch is not None
    agree(space.build(arch, space.task(img_size=96)), timm.create_model(name))


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (mobilenet_v3_large(), "mobilenetv3_large_100"),
        (mobilenet_v3_small(), "mobilenetv3_small_100"),
        (mobilenet_v2(), "mobilenetv2_100"),
    ],
)
def test_mobilenets_compute_what_timm_does(rows: NetworkRows, name: str) -> None:
    agree(MobileNet(rows, TASK), timm.create_model(name))


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (mobilenet_v3_large(), "mobilenet_v3_large"),
        (mobilenet_v3_small(), "mobilenet_v3_small"),
        (mobilenet_v2(), "mobilenet_v2"),
    ],
)
def test_mobilenets_compute_what_torchvision_does(rows: NetworkRows, name: str) -> None:
    agree(MobileNet(rows, TASK), torchvision.models.get_model(name, weights=None))


def test_lraspp_computes_what_torchvision_does() -> None:
    # section 6.4 and figure 10; torchvision's network has 3,221,538 parameters, the head by itself 249,586
    theirs = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    space, arch = open_preset("lraspp", "large")
    assert arch is not None
    ours = space.build(arch)
    images = torch.empty(1, 3, 520, 520, device="meta")
    theirs_macs = count_macs(copy.deepcopy(theirs).to("meta"), images)
    assert space.cost(arch) == {"params": count_params(theirs)[0], "macs": theirs_macs}
    assert space.cost(arch)["params"] == count_params(ours)[0] == 3_221_538
    assert count_params(ours.head)[0] == 249_586
    assert round(theirs_macs / 1e9, 2) == 2.09  # as torchvision's page has it
    order = ("head.project", "head.gate", "head.low", "head.high")  # theirs has low before high
    names = sorted(
        ours.state_dict(), key=lambda name: next((at for at, part in enumerate(order) if name.startswith(part)), -1)
    )
    agree(ours, theirs, names)


def agree(ours: nn.Module, theirs: nn.Module, names: list[str] | None = None) -> None:
    """Give both the same weights and lively statistics, tensor by tensor in the order of the layers, and compare."""
    generator = torch.Generator().manual_seed(0)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.7, 1.3, generator)
            for value, low, high in (
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(value, low, high, generator)
    own = ours.state_dict()
    pairs = zip(names or own, theirs.state_dict().values(), strict=True)
    ours.load_state_dict({name: value.reshape(own[name].shape) for name, value in pairs})
    copy_eps(ours, theirs)
    images = torch.randn(2, 3, 96, 96, generator=generator)
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    expected = expected if isinstance(expected, Tensor) else expected["out"]
    assert expected.std() > 1e-4
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def copy_eps(ours: nn.Module, theirs: nn.Module) -> None:
    """torchvision's MobileNetV3 has another epsilon in its batch norms than everyone else."""
    norms = [[m for m in network.modules() if isinstance(m, nn.BatchNorm2d)] for network in (ours, theirs)]
    for mine, other in zip(*norms, strict=True):
        mine.eps = other.eps


@pytest.fixture(scope="module")
def macro_table(shared_data: Path) -> list[dict[str, str]]:
    """Return the benchmark's rows: arch, mean_acc, params, flops and more."""
    table = shared_data / "nas" / "nas_bench_macro" / "nas_bench_macro_cifar10.csv.gz"
    if not table.is_file():
        pytest.skip(f"{table} is not there")
    with gzip.open(table, "rt") as file:
        return list(csv.DictReader(file))


def test_all_networks_of_nas_bench_macro_cost_what_the_table_says(macro_table: list[dict[str, str]]) -> None:
    space = create("nas_bench_macro")
    for row in macro_table:
        cost = space.cost(space.parse(row["arch"]))
        assert (cost["params"], cost["macs"]) == (int(row["params"]), int(row["flops"])), row["arch"]
    assert len(macro_table) == space.count() == 6561


def test_networks_that_are_one_have_one_accuracy_in_the_table(macro_table: list[dict[str, str]]) -> None:
    space, best = open_preset("nas_bench_macro", "best")
    assert best is not None
    accuracies: dict[object, set[float]] = {}
    for row in macro_table:
        accuracies.setdefault(space.canonical(space.parse(row["arch"])), set()).add(float(row["mean_acc"]))
    assert len(accuracies) == 3969  # 9 x 21 x 21
    assert all(len(found) == 1 for found in accuracies.values())
    assert accuracies[space.canonical(best)] == {max(max(found) for found in accuracies.values())}
