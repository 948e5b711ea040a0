"""The seven operations of DARTS (Liu, Simonyan and Yang 2019, section 3.1), each (N, C, H, W) to (N, C, H', W').

H' is H, or H / 2 rounded up at stride 2. Separable convolutions are ReLU, depthwise, pointwise, batch norm, twice;
dilated ones once, two pixels apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from spaces.nasnet.operations import ConvNorm, ReluConvNorm
from spaces.nasnet.parts import FactorizedReduction

Norm = Callable[[int], nn.Module]
"""Makes a batch norm of so many channels."""


class Separable(nn.Module):
    """ReLU, depthwise convolution, pointwise convolution, batch norm."""

    def __init__(self, channels: int, kernel: int, stride: int, norm: Norm, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, channels, H / stride, W / stride)."""
        y: Tensor = self.norm(self.pointwise(self.depthwise(F.relu(x))))
        return y


def kernel_of(name: str) -> int:
    """Return the side of an operation's kernel, such as 5 of `sep_conv_5x5`."""
    return int(name[-1])


def operation(name: str, channels: int, stride: int, norm: Norm, norm_pools: bool) -> nn.Module:
    """Return the operation called `name`; with `norm_pools`, a pooling has a batch norm behind it."""
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else halving(channels, channels, norm)
    if name.endswith("_pool_3x3"):
        average = name.startswith("avg")
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False) if average else nn.MaxPool2d(3, stride, 1)
        return nn.Sequential(pool, norm(channels)) if norm_pools else pool
    kernel = kernel_of(name)
    if name.startswith("dil"):
        return Separable(channels, kernel, stride, norm, dilation=2)
    return nn.Sequential(Separable(channels, kernel, stride, norm), Separable(channels, kernel, 1, norm))


def halving(in_channels: int, channels: int, norm: Norm) -> nn.Module:
    """Return ReLU and two 1x1 convolutions of stride 2, one a pixel further on, with one batch norm."""
    half = channels // 2
    first, second = (nn.Conv2d(in_channels, out, 1, bias=False) for out in (half, channels - half))
    return FactorizedReduction(first, second, norm(channels), relu=True)


def fitting(in_channels: int, channels: int, norm: Norm) -> nn.Module:
    """Return ReLU, 1x1 convolution, batch norm."""
    return ReluConvNorm(nn.Conv2d(in_channels, channels, 1, bias=False), norm(channels))


def stem(in_chans: int, channels: int, kernel: int, stride: int) -> ConvNorm:
    """Return a convolution and a batch norm, which has affine parameters always."""
    conv = nn.Conv2d(in_chans, channels, kernel, stride, kernel // 2, bias=False)
    return ConvNorm(conv, nn.BatchNorm2d(channels))
