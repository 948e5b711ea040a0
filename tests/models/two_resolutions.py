"""Two branches of two resolutions (ContextNet, Poudel et al., 2018; BiSeNetV2, Yu et al., 2021) with an image for each.

A shallow branch takes the large image, a deep one of inverted bottlenecks the small one; each gates the other before
they are summed.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Conv(nn.Sequential):
    def __init__(self, i, o, k=3, s=1, g=1, act=True):
        super().__init__(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), *[nn.ReLU()] * act)


class Separable(nn.Sequential):
    def __init__(self, i, o, s):
        super().__init__(Conv(i, i, 3, s, i), Conv(i, o, 1))


class Inverted(nn.Module):
    def __init__(self, i, o, s, t=4):
        super().__init__()
        self.layers = nn.Sequential(Conv(i, t * i, 1), Conv(t * i, t * i, 3, s, t * i), Conv(t * i, o, 1, act=False))
        self.residual = s == 1 and i == o

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


class Context(nn.Module):
    """The mean of all places, added to each."""

    def __init__(self, c):
        super().__init__()
        self.bn, self.gap, self.last = nn.BatchNorm2d(c), Conv(c, c, 1), Conv(c, c, 3)

    def forward(self, x):
        return self.last(x + self.gap(self.bn(x.mean((2, 3), keepdim=True))))


class Aggregation(nn.Module):
    """Bilateral guided aggregation: what each branch says, gated by the other."""

    def __init__(self, c):
        super().__init__()
        self.detail_keep = nn.Sequential(Conv(c, c, 3, 1, c, act=False), nn.Conv2d(c, c, 1))
        self.detail_down = nn.Sequential(Conv(c, c, 3, 2, act=False), nn.AvgPool2d(3, 2, 1))
        self.context_up = Conv(c, c, 3, act=False)
        self.context_keep = nn.Sequential(Conv(c, c, 3, 1, c, act=False), nn.Conv2d(c, c, 1))
        self.last = Conv(c, c)

    def forward(self, detail, context):
        gate = torch.sigmoid(F.interpolate(self.context_up(context), scale_factor=4, mode="bilinear"))
        fine = self.detail_keep(detail) * gate
        coarse = self.detail_down(detail) * torch.sigmoid(self.context_keep(context))
        return self.last(fine + F.interpolate(coarse, scale_factor=4, mode="bilinear"))


class TwoResolutions(nn.Module):
    def __init__(self, classes=4, w=16):
        super().__init__()
        self.detail = nn.Sequential(Conv(3, w, 3, 2), Separable(w, 2 * w, 2), Conv(2 * w, 4 * w, 3))
        self.context = nn.Sequential(
            Conv(3, w, 3, 2), Inverted(w, w, 1), Inverted(w, 2 * w, 2), Inverted(2 * w, 2 * w, 1),
            Inverted(2 * w, 4 * w, 2), Inverted(4 * w, 4 * w, 1), Context(4 * w),
        )  # fmt: skip
        self.aggregate = Aggregation(4 * w)
        self.head = nn.Sequential(Conv(4 * w, 4 * w), nn.Dropout(0.1), nn.Conv2d(4 * w, classes, 1))

    def forward(self, large, small):
        logits = self.head(self.aggregate(self.detail(large), self.context(small)))
        return F.interpolate(logits, size=large.shape[2:], mode="bilinear", align_corners=False)


def make():
    return TwoResolutions()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, 64, 64, generator=generator), torch.randn(1, 3, 32, 32, generator=generator)
