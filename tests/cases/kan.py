"""Kolmogorov-Arnold network: convolutional stem, then layers whose edges are B-splines (bases by the Cox-de Boor
recursion, summed with einsum in one layer and F.linear of the reshaped table in the other); logits."""

import torch
import torch.nn.functional as F
from torch import nn


class KAN(nn.Module):
    def __init__(self, i, o, grid=5, order=3, einsum=True):
        super().__init__()
        self.in_features, self.out_features, self.order, self.einsum = i, o, order, einsum
        h = 2.0 / grid
        points = torch.arange(-order, grid + order + 1) * h - 1
        self.register_buffer("grid", points.expand(i, -1).contiguous())
        self.base = nn.Parameter(torch.randn(o, i) / i**0.5)
        self.spline = nn.Parameter(torch.randn(o, i, grid + order) * 0.1)
        self.scaler = nn.Parameter(torch.rand(o, i) + 0.5)

    def bases(self, x):
        x, g = x.unsqueeze(-1), self.grid
        b = ((x >= g[:, :-1]) & (x < g[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            left = (x - g[:, : -(k + 1)]) / (g[:, k:-1] - g[:, : -(k + 1)])
            right = (g[:, k + 1 :] - x) / (g[:, k + 1 :] - g[:, 1:(-k)])
            b = left * b[:, :, :-1] + right * b[:, :, 1:]
        return b

    def forward(self, x):
        weight = self.spline * self.scaler.unsqueeze(-1)
        b = self.bases(x)
        if self.einsum:
            y = torch.einsum("bik,oik->bo", b, weight)
        else:
            y = F.linear(b.view(x.size(0), -1), weight.view(self.out_features, -1))
        return y + F.linear(F.silu(x), self.base)


class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.Tanh(),
        )
        self.k1, self.k2, self.k3 = KAN(32, 128), KAN(128, 64, einsum=False), KAN(64, classes)

    def forward(self, x):
        return self.k3(torch.tanh(self.k2(torch.tanh(self.k1(self.stem(x).mean((2, 3)))))))


def make():
    return Net()


def inputs():
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)
