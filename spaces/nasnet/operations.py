"""The thirteen operations of the NASNet space (Zoph et al. 2018, section 3) with TensorFlow's "SAME" padding.

Every convolution is ReLU, convolution, batch norm. An operation maps (N, in_channels, H, W) to (N, channels, H', W'),
where H' is H, or H / 2 rounded up at stride 2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OperationName = Literal[
    "identity", "conv_1x3_3x1", "conv_1x7_7x1", "dil_conv_3x3", "avg_pool_3x3", "max_pool_3x3", "max_pool_5x5",
    "max_pool_7x7", "conv_1x1", "conv_3x3", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7",
]  # fmt: skip
OPERATIONS: tuple[OperationName, ...] = get_args(OperationName)
"""In the paper's order, which is that of their numbers in a code."""

Norm = Callable[[int], nn.Module]
"""Makes a batch norm of so many channels."""


def kernel_of(name: str) -> int:
    """Return the longer side of an operation's kernel."""
    return max((int(sign) for sign in name if sign.isdigit()), default=1)


def has_weights(name: str, in_channels: int, channels: int, stride: int) -> bool:
    """Return whether an operation has weights: an identity or a pooling only where it must repair a shape."""
    if name == "identity":
        return stride > 1 or in_channels != channels
    return "pool" not in name or in_channels != channels


def make_operation(name: str, in_channels: int, channels: int, stride: int, norm: Norm) -> nn.Module:
    """Return the operation called `name`."""
    kernel = kernel_of(name)
    if not has_weights(name, in_channels, channels, stride):
        return nn.Identity() if name == "identity" else SamePool(name[:3], kernel, stride)
    if "pool" in name:
        return RepairedPool(SamePool(name[:3], kernel, stride), SameConv2d(in_channels, channels, 1), norm(channels))
    if name.startswith("sep"):
        return SeparableConv(in_channels, channels, kernel, stride, norm)
    if name in ("conv_1x3_3x1", "conv_1x7_7x1"):
        return FactorizedConv(in_channels, channels, kernel, stride, norm)
    dilation = 2 if name.startswith("dil") else 1
    return ReluConvNorm(SameConv2d(in_channels, channels, kernel, stride, dilation), norm(channels))


def _margin(size: int, reach: int, stride: int) -> int:
    """Return the padding before the first of `size` pixels; after the last it is always `reach`."""
    return max(reach - 1, 0) if stride == 2 and size % 2 == 0 else reach


def _sides(x: Tensor) -> tuple[int, int]:
    """Return height and width as plain numbers, also in a trace: they are constants of an exported file."""
    if not torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return x.shape[-2], x.shape[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are constants is meant
        return int(x.shape[-2]), int(x.shape[-1])


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded so that a map of H pixels becomes one of H / stride, rounded up."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        reach = (dilation * (sides[0] // 2), dilation * (sides[1] // 2))
        super().__init__(in_channels, out_channels, sides, stride, reach, dilation, groups, bias=False)
        self.reach = reach
        self.strided = tuple(side == 2 for side in self.stride)

    def set_stride(self, stride: int) -> None:
        """Take another stride, along the axes that had one from the start."""
        self.stride = (stride if self.strided[0] else 1, stride if self.strided[1] else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        if self.stride == (1, 1):
            return super().forward(x)
        height, width = _sides(x)
        top = _margin(height, self.reach[0], self.stride[0])
        left = _margin(width, self.reach[1], self.stride[1])
        padding = self.reach
        if (top, left) != self.reach:
            x, padding = F.pad(x, (left, self.reach[1], top, self.reach[0])), (0, 0)
        return F.conv2d(x, self.weight, None, self.stride, padding, self.dilation, self.groups)


class SamePool(nn.Module):
    """Pooling padded like `SameConv2d`; an average leaves the padding out."""

    def __init__(self, kind: str, kernel: int, stride: int) -> None:
        super().__init__()
        self.kind, self.kernel, self.stride = kind, kernel, stride

    def set_stride(self, stride: int) -> None:
        """Take another stride."""
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / stride, W / stride)."""
        reach, halve = self.kernel // 2, self.stride == 2
        sides = _sides(x) if halve else (0, 0)
        padding = (_margin(sides[0], reach, self.stride), _margin(sides[1], reach, self.stride))
        if self.kind == "max":
            return F.max_pool2d(x, self.kernel, self.stride, padding, ceil_mode=halve)
        return F.avg_pool2d(x, self.kernel, self.stride, padding, ceil_mode=halve, count_include_pad=False)

    def extra_repr(self) -> str:
        """Say which pooling it is."""
        return f"{self.kind}, kernel={self.kernel}, stride={self.stride}"


class ConvNorm(nn.Module):
    """Convolution and batch norm: the stem, and the repair of a state that a cell concatenates."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to the convolution's output."""
        y: Tensor = self.norm(self.conv(x))
        return y


class ReluConvNorm(ConvNorm):
    """ReLU, convolution, batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to the convolution's output."""
        return super().forward(F.relu(x))


class RepairedPool(nn.Module):
    """Pooling of a map with the wrong width, then a 1x1 convolution and batch norm."""

    def __init__(self, pool: nn.Module, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.pool, self.conv, self.norm = pool, conv, norm

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to the convolution's output."""
        y: Tensor = self.norm(self.conv(self.pool(x)))
        return y


class FactorizedConv(nn.Module):
    """A 1xk convolution with the horizontal stride, then a kx1 convolution with the vertical one."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.horizontal = ReluConvNorm(SameConv2d(in_channels, channels, (1, kernel), (1, stride)), norm(channels))
        self.vertical = ReluConvNorm(SameConv2d(channels, channels, (kernel, 1), (stride, 1)), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        y: Tensor = self.vertical(self.horizontal(x))
        return y


class SeparableHalf(nn.Module):
    """ReLU, depthwise convolution, pointwise convolution, batch norm."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.depthwise = SameConv2d(in_channels, in_channels, kernel, stride, groups=in_channels)
        self.pointwise = SameConv2d(in_channels, channels, 1)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        y: Tensor = self.norm(self.pointwise(self.depthwise(F.relu(x))))
        return y


class SeparableConv(nn.Module):
    """A depthwise-separable convolution, applied twice; the first takes the stride and maps the channels."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.first = SeparableHalf(in_channels, channels, kernel, stride, norm)
        self.second = SeparableHalf(channels, channels, kernel, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        y: Tensor = self.second(self.first(x))
        return y


def initialize(module: nn.Module) -> None:
    """Draw the weights of `module` anew: convolutions He normal by fan-out, the classifier normal with 0.01."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.out_channels // part.groups * math.prod(part.kernel_size)
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
            nn.init.zeros_(part.bias)
