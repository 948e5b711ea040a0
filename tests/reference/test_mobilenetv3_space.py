"""The elastic MobileNetV3 space against published figures and against the counts of other libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluators.cost import count_macs, count_params
from spaces.mobilenet.tables import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small
from spaces.mobilenetv3 import MobileNetV3Space
from spaces.registry import create, open_preset


def open_space(**options: Any) -> MobileNetV3Space:
    space = create("mobilenetv3", options)
    assert isinstance(space, MobileNetV3Space)
    return space


def test_once_for_all_has_2e19_networks() -> None:
    # Cai et al. 2020, section 3.1: ((3 x 3)^2 + (3 x 3)^3 + (3 x 3)^4)^5, about 2e19
    assert open_space().count() == (9**2 + 9**3 + 9**4) ** 5 == 21_758_655_492_572_485_851


@pytest.mark.parametrize(("width", "params"), [(1.0, 7_678_880), (1.2, 10_715_752)])
def test_once_for_all_supernet(width: float, params: int) -> None:
    with torch.device("meta"):
        supernet = open_space(width=width).supernet()
    matrices = sum(p.numel() for name, p in supernet.named_parameters() if ".matrices." in name)
    assert count_params(supernet)[0] == params
    assert matrices == 20 * (25**2 + 9**2)


@pytest.mark.parametrize(
    ("width", "kernel", "expand", "depth", "params", "macs"),
    [
        (1.0, 7, 6, 4, 7_664_760, 566.17),
        (1.0, 3, 3, 2, 3_410_792, 121.28),
        (1.0, 5, 4, 3, 4_551_792, 250.75),
        (1.2, 7, 6, 4, 10_701_632, 843.10),
        (1.2, 3, 3, 2, 4_602_456, 193.08),
    ],
)
def test_once_for_all_sub_nets(width: float, kernel: int, expand: int, depth: int, params: int, macs: float) -> None:
    space = open_space(width=width)
    arch = space.parse({"ks": kernel, "e": expand, "d": depth})
    with torch.device("meta"):
        network = space.build(arch)
        counted = count_macs(network, torch.empty(1, 3, 224, 224))
    assert space.cost(arch) == {"params": count_params(network)[0], "macs": counted}
    assert count_params(network)[0] == params
    assert counted / 1e6 == pytest.approx(macs, abs=0.005)


@pytest.mark.parametrize(
    ("preset", "params", "macs"),
    [  # Howard et al. 2019: 5.4 M / 219 M and 2.5 M / 56 M; Sandler et al. 2018: 3.4 M / 300 M; timm, torchvision
        ("mobilenetv3-large", 5_483_032, 216_589_760),
        ("mobilenetv3-small", 2_542_856, 56_510_400),
        ("mobilenetv2", 3_504_872, 300_774_272),
        ("ofa-largest", 7_664_760, 566_170_656),
        ("ofa-smallest", 3_410_792, 121_278_672),
    ],
)
def test_published_networks_are_points_of_the_space(preset: str, params: int, macs: int) -> None:
    space, arch = open_preset("mobilenetv3", preset)
    assert arch is not None
    assert space.cost(arch) == {"params": params, "macs": macs}
    with torch.device("meta"):
        network = space.build(arch)
        assert count_params(network)[0] == params
        assert count_macs(network, torch.empty(1, 3, 224, 224)) == macs


@pytest.mark.parametrize("width", [0.75, 1.0, 1.4])
def test_points_equal_the_published_tables_at_every_width(width: float) -> None:
    tables = {
        "mobilenetv3-large": mobilenet_v3_large,
        "mobilenetv3-small": mobilenet_v3_small,
        "mobilenetv2": mobilenet_v2,
    }
    for preset, published in tables.items():
        space, arch = open_preset("mobilenetv3", preset, {"width": width})
        assert isinstance(space, MobileNetV3Space) and arch is not None
        assert space.rows(arch) == published(width)


@pytest.mark.parametrize(
    ("preset", "width", "params", "macs"),
    [
        ("mobilenetv3-large", 0.75, 3_993_528, 154.561),
        ("mobilenetv3-small", 0.75, 2_041_872, 43.399),
        ("mobilenetv2", 0.35, 1_677_128, 59.286),
        ("mobilenetv2", 1.4, 6_108_776, 582.196),
    ],
)
def test_width_multipliers(preset: str, width: float, params: int, macs: float) -> None:
    space, arch = open_preset("mobilenetv3", preset, {"width": width})
    assert arch is not None
    cost = space.cost(arch)
    assert cost["params"] == params
    assert cost["macs"] / 1e6 == pytest.approx(macs, abs=0.0005)


@pytest.mark.parametrize(("size", "macs"), [(256, 281.66), (192, 160.19), (160, 112.47), (128, 73.43), (96, 43.06)])
def test_resolutions_of_large(size: int, macs: float) -> None:
    # Howard et al. 2019, figure 1: 282, 160, 112, 73, 43 M
    space, arch = open_preset("mobilenetv3", "mobilenetv3-large")
    assert arch is not None
    searched = open_space(skeleton="large", resolutions=(96, 128, 160, 192, 256))
    for cost in (space.cost(arch, space.task(img_size=size)), searched.cost({"resolution": size, **arch})):
        assert cost["params"] == 5_483_032
        assert cost["macs"] / 1e6 == pytest.approx(macs, abs=0.005)
