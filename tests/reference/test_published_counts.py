"""Parameters and MACs against the papers, and against the figures that other counters agree on."""

from __future__ import annotations

import pytest
import torch

from evaluators.cost import count_macs, count_params
from spaces.zoo import ModelConfig, build_model


def counts(source: str, name: str, size: int, **kwargs: object) -> tuple[int, int]:
    module = build_model(ModelConfig(source=source, name=name, kwargs=kwargs)).module  # type: ignore[arg-type]
    return count_params(module)[0], count_macs(module, torch.zeros(1, 3, size, size))


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [  # Liu et al. 2021, table 1: 28 / 50 / 88 M parameters, 4.5 / 8.7 / 15.4 G
        ("swin_tiny_patch4_window7_224", 28_288_354, 4_490_566_656),
        ("swin_small_patch4_window7_224", 49_606_258, 8_740_875_264),
        ("swin_base_patch4_window7_224", 87_768_224, 15_430_946_816),
    ],
)
def test_swin(name: str, params: int, macs: int) -> None:
    assert counts("timm", name, 224) == (params, macs)


@pytest.mark.parametrize(
    ("depth", "params"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_cifar_resnet(depth: int, params: int) -> None:
    # He et al. 2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 M parameters
    found, macs = counts("builtin", f"cifar_resnet{depth}", 32)
    blocks = (depth - 2) // 6
    plain = 2 * 9 * 16**2 * 32**2  # MACs of a block, the same in every stage but for its first block
    assert found == params
    assert macs == 27 * 16 * 32**2 + 64 * 10 + 3 * blocks * plain - 2 * plain // 4


def test_cifar_resnet_with_projections() -> None:
    # shortcut B adds 16x32 + 32x64 weights and the batch norms of 32 and 64 channels; 40.813 M MACs
    assert counts("builtin", "cifar_resnet20", 32, shortcut="B") == (269_722 + 2560 + 192, 40_813_184)


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_mobilenets(source: str) -> None:
    # Howard et al. 2019: 5.4 M / 219 M; Sandler et al. 2018: 3.4 M / 300 M; both libraries agree to the unit
    names = {
        "timm": ("mobilenetv3_large_100", "mobilenetv2_100"),
        "torchvision": ("mobilenet_v3_large", "mobilenet_v2"),
    }
    large, second = (counts(source, name, 224) for name in names[source])
    assert large == (5_483_032, 216_589_760)
    assert second == (3_504_872, 300_774_272)


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [("mobilenetv3_large_075", 224, 154.561), ("mobilenetv3_small_100", 224, 56.510), ("mnasnet_100", 224, 314.416)],
)
def test_other_mobile_networks(name: str, size: int, millions: float) -> None:
    assert counts("timm", name, size)[1] == pytest.approx(millions * 1e6, abs=500)
