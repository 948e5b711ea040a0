"""The networks of the space: CIFAR ResNets whose convolutions are each as wide as it has been chosen.

Where a block's widths differ from end to end, its shortcut is a 1x1 convolution. A shortcut with stride 2 averages 2x2
pixels before it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.resnet_shapes.shape import KERNELS, Block, Shape


class Unit(nn.Module):
    """A convolution without bias, and batch norm where `norm`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out: Tensor = self.norm(self.conv(x))
        return out


class Residual(nn.Module):
    """A basic or a bottleneck block."""

    def __init__(self, shape: Shape, block: Block) -> None:
        super().__init__()
        kernels = KERNELS[shape.kind]
        strided, inputs = kernels.index(3), block.inputs
        self.units = nn.ModuleList()
        for place, (kernel, outputs) in enumerate(zip(kernels, block.widths, strict=True)):
            self.units.append(Unit(inputs, outputs, kernel, block.stride if place == strided else 1))
            inputs = outputs
        self.stride = block.stride
        self.shortcut: nn.Module = nn.Identity()
        if block.projects:
            self.shortcut = Unit(block.inputs, block.outputs, 1, norm=shape.normed_shortcut(block))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride); H and W are even where the stride is 2."""
        out = x
        for unit in self.units[:-1]:
            out = F.relu(unit(out))
        shortcut = self.shortcut(F.avg_pool2d(x, 2) if self.stride == 2 else x)
        return F.relu(self.units[-1](out) + shortcut)


class ShapedResNet(nn.Module):
    """Stem, three stages of blocks, global average, linear classifier."""

    def __init__(self, shape: Shape, task: Task) -> None:
        super().__init__()
        self.stem = Unit(task.in_chans, shape.stem, 3)
        self.stages = nn.ModuleList(nn.Sequential() for _ in shape.stages)
        for block in shape.blocks():
            stage = self.stages[block.stage]
            assert isinstance(stage, nn.Sequential)
            stage.append(Residual(shape, block))
        self.classifier = nn.Linear(shape.last, task.num_outputs)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_outputs)."""
        x = F.relu(self.stem(images))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def initialise(module: nn.Module) -> None:
    """Draw initial weights as He et al. do: convolutions by their fan-out."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
            nn.init.zeros_(part.bias)
