from __future__ import annotations

import pytest
import torch
from torch import nn

from evaluators.cost import count_macs, count_params
from spaces.layers import Cost, conv, halved, linear


@pytest.mark.parametrize("kernel", [1, 3, (1, 7)])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("bias", "norm"), [(False, True), (True, False)])
def test_cost_of_a_convolution_is_that_of_the_module(
    kernel: int | tuple[int, int], groups: int, bias: bool, norm: bool
) -> None:
    layers: list[nn.Module] = [nn.Conv2d(8, 12, kernel, padding="same", groups=groups, bias=bias)]
    module = nn.Sequential(*layers, *([nn.BatchNorm2d(12)] if norm else [])).eval()
    cost = conv(8, 12, kernel, 17, groups, bias, norm)
    assert cost == Cost(count_params(module)[0], count_macs(module, torch.zeros(1, 8, 17, 17)))


def test_cost_of_a_linear_layer_is_that_of_the_module_and_costs_add_up() -> None:
    module = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3, bias=False)).eval()
    cost = linear(6, 10) + linear(10, 3, bias=False)
    assert cost == Cost(count_params(module)[0], count_macs(module, torch.zeros(1, 6)))


@pytest.mark.parametrize("size", [1, 7, 8, 83, 111])
def test_halved_is_the_size_after_a_convolution_of_stride_two(size: int) -> None:
    assert halved(size) == nn.Conv2d(1, 1, 3, 2, 1)(torch.zeros(1, 1, size, size)).shape[2]
