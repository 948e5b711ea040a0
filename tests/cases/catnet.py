"""CATNet (aerial instance segmentation): dense feature pyramid (every level feeds every level, learned weights) and
spatial context pyramid (attention pooled context gated per position)."""

import torch
import torch.nn.functional as F
from torch import nn


class SpatialContext(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.k, self.v = nn.Conv2d(c, 1, 1), nn.Conv2d(c, 1, 1), nn.Conv2d(c, c, 1)
        self.m = nn.Conv2d(2 * c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        gate = self.a(x).sigmoid()
        k = self.k(x).view(b, 1, -1, 1).softmax(2)
        v = self.v(x).view(b, 1, c, -1)
        y = torch.matmul(v, k).view(b, c, 1, 1)
        pooled = torch.cat([x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)], 1)
        return x + gate * y * self.m(pooled).sigmoid()


class DenseBlock(nn.Module):
    """One pass: each level is the weighted sum of all levels, resized, then a separable convolution."""

    def __init__(self, c, levels=3):
        super().__init__()
        self.w = nn.Parameter(torch.ones(levels, levels))
        self.convs = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, c, 1), nn.BatchNorm2d(c))
                for _ in range(levels)
            ]
        )

    def resize(self, x, size):
        if x.shape[-1] > size[-1]:
            return F.adaptive_max_pool2d(x, size)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def forward(self, feats):
        w = F.relu(self.w)
        w = w / (w.sum(1, keepdim=True) + 1e-4)
        out = []
        for i, conv in enumerate(self.convs):
            size = feats[i].shape[-2:]
            mixed = sum(w[i, j] * self.resize(f, size) for j, f in enumerate(feats))
            out.append(conv(F.silu(mixed)) + feats[i])
        return out


class CATNet(nn.Module):
    def __init__(self, c=32):
        super().__init__()
        chans = (16, 32, 48, 64)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in zip(chans, chans[1:])]
        )
        self.lateral = nn.ModuleList([nn.Conv2d(i, c, 1) for i in chans[1:]])
        self.dense = nn.ModuleList([DenseBlock(c) for _ in range(3)])
        self.context = nn.ModuleList([SpatialContext(c) for _ in range(3)])
        self.box = nn.Conv2d(c, 4, 3, padding=1)
        self.mask = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(c, c, 2, 2), nn.ReLU(), nn.Conv2d(c, 5, 1)
        )

    def forward(self, x):
        x, feats = self.stem(x), []
        for stage, lat in zip(self.stages, self.lateral):
            x = stage(x)
            feats.append(lat(x))
        seen = [feats]
        for block in self.dense:  # dense connections between the blocks
            seen.append(block([sum(level) for level in zip(*seen)]))
        feats = [ctx(f) for ctx, f in zip(self.context, seen[-1])]
        return {"boxes": [self.box(f) for f in feats], "masks": self.mask(feats[0])}


def make():
    return CATNet()


def inputs():
    return (torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)),)
