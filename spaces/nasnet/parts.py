"""What a network is put together from: new modules here; the supernet hands out its shared ones instead."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.nasnet.operations import ConvNorm, ReluConvNorm, SameConv2d, make_operation
from spaces.nasnet.options import NASNetConfig
from spaces.nasnet.skeleton import Site, Source

AUXILIARY_WIDTHS = (128, 768)


class FactorizedReduction(nn.Module):
    """Halves a map in two branches, of which the second sees the pixels that the first steps over, and concatenates."""

    def __init__(self, branch1: nn.Module, branch2: nn.Module, norm: nn.Module, relu: bool) -> None:
        super().__init__()
        self.branch1, self.branch2, self.norm, self.relu = branch1, branch2, norm, relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / 2, W / 2), sides rounded up."""
        if self.relu:
            x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1::2, 1::2]
        y: Tensor = self.norm(torch.cat([self.branch1(x[:, :, ::2, ::2]), self.branch2(shifted)], 1))
        return y


class AuxiliaryHead(nn.Module):
    """The classifier on stage 2 that steadies training: pooling, 1x1 and full-map convolutions, a linear layer."""

    def __init__(self, project: ConvNorm, mix: nn.Module, classifier: nn.Module, stride: int = 3) -> None:
        super().__init__()
        self.project, self.mix, self.classifier = project, mix, classifier
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to logits (N, classes)."""
        x = self.project(F.avg_pool2d(F.relu(x), 5, self.stride))
        logits: Tensor = self.classifier(F.relu(self.mix(F.relu(x))).flatten(1))
        return logits


class Parts:
    """Makes the modules of a network; each method says where its module stands and what it reads."""

    def __init__(self, config: NASNetConfig) -> None:
        self.config = config

    def norm(self, channels: int) -> nn.Module:
        """Return a batch norm."""
        return nn.BatchNorm2d(channels, self.config.norm_eps, self.config.norm_momentum)

    def conv(self, source: Source, channels: int) -> nn.Module:
        """Return a 1x1 convolution of a cell's output."""
        return SameConv2d(source.channels, channels, 1)

    def linear(self, source: Source, features: int) -> nn.Module:
        """Return a linear layer on a cell's pooled output."""
        return nn.Linear(source.channels, features)

    def stem(self, in_chans: int) -> nn.Module:
        """Return the stem's convolution: 3x3, for ImageNet with stride 2 and without padding."""
        channels = self.config.first_channels
        if self.config.stem == "cifar":
            return ConvNorm(SameConv2d(in_chans, channels, 3), self.norm(channels))
        return ConvNorm(nn.Conv2d(in_chans, channels, 3, 2, bias=False), self.norm(channels))

    def prepare(self, site: Site, state: int, source: Source) -> nn.Module:
        """Return what brings the map of state 0 or 1 to the cell's width, and state 1 to state 0's resolution."""
        channels = site.channels
        if state == 0 or not site.second_halves:
            return ReluConvNorm(self.conv(source, channels), self.norm(channels))
        half = channels // 2
        branch1, branch2 = self.conv(source, half), self.conv(source, channels - half)
        return FactorizedReduction(branch1, branch2, self.norm(channels), relu=True)

    def operation(self, site: Site, block: int, slot: int, name: str, in_channels: int, stride: int) -> nn.Module:
        """Return the operation `name` of slot 1 or 2 of a block."""
        return make_operation(name, in_channels, site.channels, stride, self.norm)

    def fit(self, site: Site, state: int, in_channels: int, halve: bool) -> nn.Module:
        """Return what brings a state of the wrong width or resolution into the cell's output (no ReLU)."""
        channels, half = site.channels, site.channels // 2
        if not halve:
            return ConvNorm(SameConv2d(in_channels, channels, 1), self.norm(channels))
        branch1, branch2 = SameConv2d(in_channels, half, 1), SameConv2d(in_channels, channels - half, 1)
        return FactorizedReduction(branch1, branch2, self.norm(channels), relu=False)

    def auxiliary_head(self, source: Source, size: int, num_classes: int) -> nn.Module:
        """Return the auxiliary head for a pooled map of `size` x `size`."""
        narrow, wide = AUXILIARY_WIDTHS
        project = ConvNorm(self.conv(source, narrow), self.norm(narrow))
        mix = ConvNorm(nn.Conv2d(narrow, wide, size, bias=False), self.norm(wide))
        return AuxiliaryHead(project, mix, nn.Linear(wide, num_classes))

    def classifier(self, source: Source, num_classes: int) -> nn.Module:
        """Return the linear layer at the end."""
        return self.linear(source, num_classes)
