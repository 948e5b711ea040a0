"""The network of the NATS-Bench size space: three fixed cells with a residual reduction block between each two.

Dong, Liu, Musial and Gabrys, "NATS-Bench: Benchmarking NAS Algorithms for Architecture Topology and Size", section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

REDUCTIONS = (1, 3)
"""Positions, counted from 0, whose block halves the map."""


class Unit(nn.Module):
    """ReLU, convolution without bias, batch norm; the stem and shortcuts leave the first or the last out."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True, norm: bool = True
    ) -> None:
        super().__init__()
        self.relu = relu
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out: Tensor = self.norm(self.conv(F.relu(x) if self.relu else x))
        return out


def skip(inputs: int, outputs: int) -> nn.Module:
    """Return the skip of a cell: a 1x1 convolution with batch norm where the widths differ."""
    return nn.Identity() if inputs == outputs else Unit(inputs, outputs, 1, relu=False)


@dataclass(frozen=True)
class Parts:
    """What the network is made of; the supernet brings slimmable ones."""

    unit: Callable[..., nn.Module] = Unit
    skip: Callable[[int, int], nn.Module] = skip
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    linear: Callable[[int, int], nn.Module] = nn.Linear


class Cell(nn.Module):
    """`|conv3x3~0|+|conv3x3~0|conv3x3~1|+|skip~0|conv3x3~1|conv3x3~2|`: each node is the sum of its inputs."""

    def __init__(self, inputs: int, outputs: int, parts: Parts) -> None:
        super().__init__()
        self.conv01 = parts.unit(inputs, outputs, 3)
        self.conv02 = parts.unit(inputs, outputs, 3)
        self.conv12 = parts.unit(outputs, outputs, 3)
        self.skip03 = parts.skip(inputs, outputs)
        self.conv13 = parts.unit(outputs, outputs, 3)
        self.conv23 = parts.unit(outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        first = self.conv01(x)
        second = self.conv02(x) + self.conv12(first)
        out: Tensor = self.skip03(x) + self.conv13(first) + self.conv23(second)
        return out


class Reduction(nn.Module):
    """The residual block with stride 2; its shortcut is average pooling and a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, parts: Parts) -> None:
        super().__init__()
        self.conv_a = parts.unit(inputs, outputs, 3, 2)
        self.conv_b = parts.unit(outputs, outputs, 3)
        self.shortcut = parts.unit(inputs, outputs, 1, relu=False, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / 2, W / 2); H and W are even."""
        out: Tensor = self.shortcut(F.avg_pool2d(x, 2)) + self.conv_b(self.conv_a(x))
        return out


class NATSNetwork(nn.Module):
    """Stem, five blocks with `channels` outputs, batch norm and ReLU, global average, linear classifier."""

    def __init__(self, in_chans: int, channels: Sequence[int], num_classes: int, parts: Parts | None = None) -> None:
        super().__init__()
        parts = parts or Parts()
        self.stem = parts.unit(in_chans, channels[0], 3, relu=False)
        self.blocks = nn.ModuleList(
            (Reduction if place in REDUCTIONS else Cell)(inputs, outputs, parts)
            for place, (inputs, outputs) in enumerate(zip([channels[0], *channels], channels, strict=False))
        )
        self.norm = parts.norm(channels[-1])
        self.classifier = parts.linear(channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(F.relu(self.norm(x)).mean((2, 3)))
        return logits
