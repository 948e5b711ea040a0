"""A whole number that is no width (the side of a pooled map) and happens to equal one: `self.pool_size = 16` beside 16
channels. Attributes called *size*, h, n, d, c are rewritten with the width, so the pooled map shrinks as well."""

import torch
import torch.nn.functional as F
from torch import nn


class Context(nn.Module):
    def __init__(self, c, pool_size):
        super().__init__()
        self.pool_size = pool_size
        self.up, self.bn, self.conv = nn.Conv2d(c, 3 * c, 1), nn.BatchNorm2d(3 * c), nn.Conv2d(3 * c, c, 3, padding=1)

    def forward(self, x):
        y = self.conv(F.relu(self.bn(self.up(F.adaptive_avg_pool2d(x, self.pool_size)))))
        return F.relu(x + F.interpolate(y, size=x.shape[-2:], mode="nearest"))


class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.c1, self.c2 = Context(16, 16), Context(16, 8)
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        return self.fc(self.c2(self.c1(self.stem(x))).mean((2, 3)))


def make():
    return Net()


def inputs():
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


ALIGN = 1
