"""Poincare-ball convolution (Poincare ResNet): windows are concatenated in the tangent space with the beta scaling,
then the hyperbolic fully connected layer (distances to hyperplanes); a Euclidean stem and classifier around it."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def expmap0(x):
    n = x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return torch.tanh(n) * x / n


def logmap0(x):
    n = x.norm(dim=-1, keepdim=True).clamp(1e-6, 1 - 1e-5)
    return torch.atanh(n) * x / n


def beta(n):
    return math.exp(math.lgamma(n / 2) + math.lgamma(0.5) - math.lgamma((n + 1) / 2))


class PoincareLinear(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.z, self.r = nn.Parameter(torch.randn(i, o) / i**0.5), nn.Parameter(torch.zeros(o))

    def forward(self, x):
        lam = 2 / (1 - x.pow(2).sum(-1, keepdim=True)).clamp_min(1e-5)
        zn = self.z.norm(dim=0).clamp_min(1e-6)
        v = (
            2
            * zn
            * torch.asinh(lam * (x @ (self.z / zn)) * torch.cosh(2 * self.r) - (lam - 1) * torch.sinh(2 * self.r))
        )
        w = torch.sinh(v)
        return w / (1 + (1 + w.pow(2).sum(-1, keepdim=True)).sqrt())


class PoincareConv(nn.Module):
    def __init__(self, i, o, k=3, s=1):
        super().__init__()
        self.in_channels, self.out_channels, self.k, self.s = i, o, k, s
        self.scale = beta(i * k * k) / beta(i)
        self.fc = PoincareLinear(i * k * k, o)

    def forward(self, x):
        b, c, h, w = x.shape
        t = logmap0(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * self.scale
        win = F.unfold(t, self.k, padding=self.k // 2, stride=self.s).transpose(1, 2)
        y = self.fc(expmap0(win)).transpose(1, 2)
        return y.reshape(b, self.out_channels, (h + self.s - 1) // self.s, -1)


class HRelu(nn.Module):
    def forward(self, x):
        return expmap0(F.relu(logmap0(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 32, 3, 1, 1), nn.BatchNorm2d(32)
        )
        self.c1, self.c2, self.c3, self.act = (
            PoincareConv(32, 32),
            PoincareConv(32, 48, s=2),
            PoincareConv(48, 48),
            HRelu(),
        )
        self.mid, self.fc = nn.Linear(48, 64), nn.Linear(64, classes)

    def forward(self, x):
        x = expmap0(self.stem(x).permute(0, 2, 3, 1) * 0.1).permute(0, 3, 1, 2)
        x = self.act(self.c3(self.act(self.c2(self.act(self.c1(x))))))
        t = logmap0(x.permute(0, 2, 3, 1)).mean((1, 2))
        return self.fc(F.relu(self.mid(t)))


def make():
    return Net()


def inputs():
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)
