"""The three residual networks of the paper, and what they cost by arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.cifar_resnet import BasicBlock
from spaces.layers import Cost, Layer, conv, halved, linear
from spaces.pooling.moves import How


@dataclass(frozen=True)
class ResNetPlan:
    """A residual network: the width of its stem, then width and number of the blocks of every stage.

    `large_images`: the stem is a 7x7 convolution with stride 2 and a 3x3 max pool with stride 2 instead of a 3x3
    convolution; it stays outside the chain then. Stages after the first halve the map by themselves.
    """

    stem: int
    stages: tuple[tuple[int, int], ...]
    bottleneck: bool = False
    large_images: bool = False
    stem_is_unit: bool = True

    @property
    def widths(self) -> list[int]:
        """The width of every block: of its output, or of the 3x3 convolution of a bottleneck."""
        return [width for width, depth in self.stages for _ in range(depth)]

    @property
    def globs(self) -> tuple[str, ...]:
        """The units of the chain, by module name."""
        return ("stem", "blocks.*") if self.stem_is_unit else ("blocks.*",)


RESNET20 = ResNetPlan(16, ((16, 3), (32, 3), (64, 3)))
RESNET18 = ResNetPlan(64, ((64, 2), (128, 2), (256, 2), (512, 2)))
RESNET50 = ResNetPlan(64, ((64, 3), (128, 4), (256, 6), (512, 3)), bottleneck=True, stem_is_unit=False)
RESNET50_LARGE = ResNetPlan(64, RESNET50.stages, bottleneck=True, large_images=True, stem_is_unit=False)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution to four times the width, and a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != 4 * width:
            projection = nn.Conv2d(in_channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet(nn.Module):
    """Stem, blocks, global average and classifier of a plan; convolutions start from He's normal, fan-out."""

    def __init__(self, plan: ResNetPlan, num_classes: int, in_chans: int) -> None:
        super().__init__()
        kernel, stride = (7, 2) if plan.large_images else (3, 1)
        first = nn.Conv2d(in_chans, plan.stem, kernel, stride, kernel // 2, bias=False)
        pool = [nn.MaxPool2d(3, 2, 1)] if plan.large_images else []
        self.stem = nn.Sequential(first, nn.BatchNorm2d(plan.stem), nn.ReLU(), *pool)
        blocks: list[nn.Module] = []
        channels = plan.stem
        for stage, (width, depth) in enumerate(plan.stages):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                if plan.bottleneck:
                    blocks.append(Bottleneck(channels, width, stride))
                else:
                    blocks.append(BasicBlock(channels, width, stride, "B"))
                channels = 4 * width if plan.bottleneck else width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def resnet_layers(plan: ResNetPlan, positions: Sequence[int], how: How, affine: bool, task: Task) -> list[Layer]:
    """Return the rows of the network with the map halved at the units `positions`, stem to classifier.

    `affine`: whether batch norm has parameters.
    """
    rows = [_stem(plan, affine, task)]
    for index, width in enumerate(plan.widths):
        unit = index + plan.stem_is_unit
        before, stride = rows[-1], 2 if unit in positions else 1
        after = halved(before.size) if stride == 2 else before.size
        if plan.bottleneck:
            entry = before.size if how == "stride" else after
            channels, cost = 4 * width, _bottleneck(before.out_channels, width, entry, after, affine)
        else:
            channels, cost = width, _basic(before.out_channels, width, after, affine)
        operation = "bottleneck" if plan.bottleneck else "basic block"
        rows.append(Layer(f"unit{unit}", operation, channels, after, stride, cost.params, cost.macs))
    head = linear(rows[-1].out_channels, task.num_outputs)
    return [*rows, Layer("head", "pool linear", task.num_outputs, 1, 1, head.params, head.macs)]


def _stem(plan: ResNetPlan, affine: bool, task: Task) -> Layer:
    name = "unit0" if plan.stem_is_unit else "stem"
    if not plan.large_images:
        cost = conv(task.in_chans, plan.stem, 3, task.img_size, norm=affine)
        return Layer(name, "conv k3", plan.stem, task.img_size, 1, cost.params, cost.macs)
    size = halved(task.img_size)
    cost = conv(task.in_chans, plan.stem, 7, size, norm=affine)
    return Layer(name, "conv k7 max pool", plan.stem, halved(size), 4, cost.params, cost.macs)


def _basic(channels: int, width: int, size: int, affine: bool) -> Cost:
    cost = conv(channels, width, 3, size, norm=affine) + conv(width, width, 3, size, norm=affine)
    return cost if channels == width else cost + conv(channels, width, 1, size, norm=affine)


def _bottleneck(channels: int, width: int, entry: int, size: int, affine: bool) -> Cost:
    """Cost with the first 1x1 convolution on maps of `entry` pixels a side and the rest on maps of `size`."""
    cost = conv(channels, width, 1, entry, norm=affine) + conv(width, width, 3, size, norm=affine)
    cost += conv(width, 4 * width, 1, size, norm=affine)
    return cost if channels == 4 * width else cost + conv(channels, 4 * width, 1, size, norm=affine)
