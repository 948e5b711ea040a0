"""What halves the map in a network: attributes that are set one way or the other, never other weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Switch:
    """An attribute of a module that has one value where its unit halves the map (`on`) and another elsewhere."""

    module: str
    attribute: str
    off: Any
    on: Any


def turn(network: nn.Module, switches: Iterable[Switch], on: bool) -> None:
    """Set all `switches` of one unit."""
    for switch in switches:
        value = switch.on if on else switch.off
        setattr(network.get_submodule(switch.module), switch.attribute, copy.deepcopy(value))


class Subsample(nn.Module):
    """The shortcut of a block with stride 2: every second pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
        return x[:, :, ::2, ::2]


class Unit(nn.Module):
    """A unit of the chain at which the map may be halved.

    Attributes:
        pools: a 2x2 max pool runs before the block.
        adds_shortcut: the subsampled input is added, for a block with stride 2 that adds its input itself otherwise.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.pools = False
        self.adds_shortcut = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the block's output, at half the height and width if the unit halves."""
        if self.pools:
            x = F.max_pool2d(x, 2, ceil_mode=True)
        out: Tensor = self.block(x)
        return out + x[:, :, ::2, ::2] if self.adds_shortcut else out

    def extra_repr(self) -> str:
        """Say what is done to the map besides the block."""
        return ", ".join(name for name in ("pools", "adds_shortcut") if getattr(self, name))


class SameConv2d(nn.Conv2d):
    """A convolution with an even kernel that pads below and to the right, to a map of ceil(side / stride)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        down, right = (self._missing(int(side), axis) for axis, side in enumerate(x.shape[-2:]))
        padded = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)) if down or right else x
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _missing(self, side: int, axis: int) -> int:
        stride = self.stride[axis]
        return max((-(-side // stride) - 1) * stride + self.kernel_size[axis] - side, 0)


def wrap(network: nn.Module, units: Sequence[str], even_convs: Sequence[str]) -> None:
    """Put every unit but the first into a `Unit`, and let convolutions with even kernels keep the map's side."""
    for name in even_convs:
        conv = network.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        same = SameConv2d(
            conv.in_channels, conv.out_channels, (conv.kernel_size[0], conv.kernel_size[1]), groups=conv.groups,
            bias=conv.bias is not None, device="meta",
        )  # fmt: skip
        same.stride, same.weight, same.bias = conv.stride, conv.weight, conv.bias
        put(network, name, same)
    for name in units[1:]:
        put(network, name, Unit(network.get_submodule(name)))


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `name` is."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
