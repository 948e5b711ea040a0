"""The residual network of Ribeiro et al. (2020) for electrocardiograms (batch, leads, samples), as their code has it.

Long convolutions, two streams (before and after norm and activation), shortcuts of max pools and convolutions of one,
and a linear layer over channels times samples.
"""

from itertools import pairwise

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inner, outer, downsample, kernel, dropout=0.2):
        super().__init__()
        self.conv1 = nn.Conv1d(inner, outer, kernel, padding=kernel // 2, bias=False)
        self.bn1, self.relu, self.dropout1 = nn.BatchNorm1d(outer), nn.ReLU(), nn.Dropout(dropout)
        self.conv2 = nn.Conv1d(outer, outer, kernel, downsample, (kernel - 1) // 2, bias=False)
        skip = [nn.MaxPool1d(downsample, stride=downsample)] if downsample > 1 else []
        skip += [nn.Conv1d(inner, outer, 1, bias=False)] if inner != outer else []
        self.skip_connection = nn.Sequential(*skip) if skip else None
        self.bn2, self.dropout2 = nn.BatchNorm1d(outer), nn.Dropout(dropout)

    def forward(self, x, y):
        if self.skip_connection is not None:
            y = self.skip_connection(y)
        x = self.dropout1(self.relu(self.bn1(self.conv1(x))))
        x = self.conv2(x)
        x += y
        y = x
        return self.dropout2(self.relu(self.bn2(x))), y


class ResNet1D(nn.Module):
    def __init__(self, leads=4, samples=128, widths=(24, 32, 32, 40, 48), kernel=9, classes=6):
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv1d(leads, widths[0], kernel, 2, kernel // 2, bias=False),
            nn.BatchNorm1d(widths[0]),
        )
        self.blocks = nn.ModuleList(
            Block(inner, outer, 1 + i % 2, kernel) for i, (inner, outer) in enumerate(pairwise(widths))
        )
        self.lin = nn.Linear(widths[-1] * samples // 8, classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        y = x
        for block in self.blocks:
            x, y = block(x, y)
        return self.lin(x.view(x.size(0), -1))


def make():
    """Return the model."""
    return ResNet1D()


def inputs():
    """Return its inputs."""
    return (torch.randn(1, 4, 128, generator=torch.Generator().manual_seed(1)),)
