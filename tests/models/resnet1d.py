"""A residual network over time for electrocardiograms (Hannun et al. 2019; Hong's resnet1d), (batch, leads, samples).

Convolutions that pad themselves to their stride, norm and activation before them, max pools on the shortcuts, which
grow by channels of zeros.
"""

import torch
import torch.nn.functional as F
from torch import nn


def padded(x, kernel, stride):
    total = max(0, (-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1])
    return F.pad(x, (total // 2, total - total // 2), "constant", 0)


class SameConv(nn.Module):
    def __init__(self, inner, outer, kernel, stride=1, groups=1):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv1d(inner, outer, kernel, stride, groups=groups)

    def forward(self, x):
        return self.conv(padded(x, self.kernel, self.stride))


class SamePool(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.kernel, self.pool = kernel, nn.MaxPool1d(kernel)

    def forward(self, x):
        return self.pool(padded(x, self.kernel, 1))


class Block(nn.Module):
    def __init__(self, inner, outer, kernel, groups, downsample, first):
        super().__init__()
        self.in_channels, self.out_channels, self.downsample, self.first = inner, outer, downsample, first
        stride = 2 if downsample else 1
        self.bn1, self.do1, self.conv1 = nn.BatchNorm1d(inner), nn.Dropout(), SameConv(inner, outer, kernel, stride)
        self.bn2, self.do2 = nn.BatchNorm1d(outer), nn.Dropout()
        self.conv2 = SameConv(outer, outer, kernel, 1, groups)
        self.pool = SamePool(2)

    def forward(self, x):
        identity = x
        if not self.first:
            x = self.do1(F.relu(self.bn1(x)))
        x = self.conv2(self.do2(F.relu(self.bn2(self.conv1(x)))))
        if self.downsample:
            identity = self.pool(identity)
        if self.out_channels != self.in_channels:
            identity = identity.transpose(-1, -2)
            before = (self.out_channels - self.in_channels) // 2
            after = self.out_channels - self.in_channels - before
            identity = F.pad(identity, (before, after), "constant", 0).transpose(-1, -2)
        return x + identity


class ResNet1D(nn.Module):
    def __init__(self, leads=2, base=24, kernel=9, blocks=6, classes=4):
        super().__init__()
        self.first, self.first_bn = SameConv(leads, base, kernel), nn.BatchNorm1d(base)
        self.blocks, inner = nn.ModuleList(), base
        for i in range(blocks):
            outer = base * 2 ** (i // 4)
            self.blocks.append(Block(inner, outer, kernel, 1, i % 2 == 1, i == 0))
            inner = outer
        self.final_bn, self.head = nn.BatchNorm1d(inner), nn.Linear(inner, classes)

    def forward(self, x):
        x = F.relu(self.first_bn(self.first(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(self.final_bn(x)).mean(-1))


def make():
    """Return the model."""
    return ResNet1D()


def inputs():
    """Return its inputs."""
    return (torch.randn(1, 2, 128),)
