"""One encoder, three tasks with distillation between them (MTI-Net-like): segmentation, depth, class; dict output."""

import torch
import torch.nn.functional as F
from torch import nn


def cbr(i, o, s=1):
    return nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Distill(nn.Module):
    """Each task adds what the others know, gated."""

    def __init__(self, tasks, c):
        super().__init__()
        self.gate = nn.ModuleDict({f"{a}_{b}": nn.Conv2d(c, c, 3, padding=1) for a in tasks for b in tasks if a != b})
        self.feat = nn.ModuleDict({f"{a}_{b}": nn.Conv2d(c, c, 3, padding=1) for a in tasks for b in tasks if a != b})

    def forward(self, x):
        return {
            a: x[a] + sum(self.feat[f"{a}_{b}"](x[b]) * torch.sigmoid(self.gate[f"{a}_{b}"](x[b])) for b in x if b != a)
            for a in x
        }


class Net(nn.Module):
    def __init__(self, c=24, classes=7):
        super().__init__()
        self.encoder = nn.ModuleList(
            [cbr(3, 16, 2), nn.Sequential(cbr(16, 32, 2), cbr(32, 32)), nn.Sequential(cbr(32, 64, 2), cbr(64, 64))]
        )
        self.task = nn.ModuleDict({t: cbr(96, c) for t in ("seg", "depth")})
        self.distill = Distill(("seg", "depth"), c)
        self.heads = nn.ModuleDict({"seg": nn.Conv2d(c, 5, 1), "depth": nn.Conv2d(c, 1, 1)})
        self.cls = nn.Linear(64, classes)
        self.log_var = nn.ParameterDict({t: nn.Parameter(torch.zeros(())) for t in ("seg", "depth", "cls")})

    def forward(self, x):
        size = x.shape[-2:]
        a = self.encoder[1](self.encoder[0](x))
        b = self.encoder[2](a)
        f = torch.cat([a, F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=False)], 1)
        t = self.distill({k: net(f) for k, net in self.task.items()})
        out = {
            k: F.interpolate(self.heads[k](v), size=size, mode="bilinear", align_corners=False) for k, v in t.items()
        }
        return out | {"cls": self.cls(b.mean((2, 3)))}


def make():
    return Net()


def inputs():
    return (torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)),)
