"""Pyramid down and up again with concatenations (PANet, Liu et al., 2018) as in YOLOv5: CSP blocks, SPPF, anchors."""

import torch
from torch import nn


class Conv(nn.Module):
    def __init__(self, i, o, k=1, s=1):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c, shortcut):
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(c, c), Conv(c, c, 3), shortcut

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C3(nn.Module):
    """Cross-stage partial: two paths from two convolutions, concatenated."""

    def __init__(self, i, o, n=1, shortcut=True):
        super().__init__()
        c = o // 2
        self.cv1, self.cv2, self.cv3 = Conv(i, c), Conv(i, c), Conv(2 * c, o)
        self.m = nn.Sequential(*(Bottleneck(c, shortcut) for _ in range(n)))

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1, self.cv2, self.m = Conv(c, c // 2), Conv(2 * c, c), nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class Detect(nn.Module):
    def __init__(self, classes, widths, anchors=3):
        super().__init__()
        self.na, self.no = anchors, classes + 5
        self.m = nn.ModuleList(nn.Conv2d(width, self.no * self.na, 1) for width in widths)

    def forward(self, maps):
        results = []
        for x, layer in zip(maps, self.m, strict=True):
            x = layer(x)
            b, _, h, w = x.shape
            x = x.view(b, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).contiguous()
            xy, wh, conf = x.sigmoid().split((2, 2, self.no - 4), 4)
            results.append(torch.cat((xy * 2, (wh * 2) ** 2, conf), 4).view(b, -1, self.no))
        return torch.cat(results, 1)


class PANet(nn.Module):
    def __init__(self, classes=3, w=8):
        super().__init__()
        self.stem = nn.Sequential(Conv(3, w, 3, 2), Conv(w, 2 * w, 3, 2), C3(2 * w, 2 * w))
        self.p3 = nn.Sequential(Conv(2 * w, 4 * w, 3, 2), C3(4 * w, 4 * w, 2))
        self.p4 = nn.Sequential(Conv(4 * w, 8 * w, 3, 2), C3(8 * w, 8 * w, 2))
        self.p5 = nn.Sequential(Conv(8 * w, 16 * w, 3, 2), C3(16 * w, 16 * w), SPPF(16 * w))
        self.reduce5, self.reduce4, self.up = Conv(16 * w, 8 * w), Conv(8 * w, 4 * w), nn.Upsample(None, 2, "nearest")
        self.top4, self.top3 = C3(16 * w, 8 * w, shortcut=False), C3(8 * w, 4 * w, shortcut=False)
        self.down3, self.down4 = Conv(4 * w, 4 * w, 3, 2), Conv(8 * w, 8 * w, 3, 2)
        self.bottom4, self.bottom5 = C3(8 * w, 8 * w, shortcut=False), C3(16 * w, 16 * w, shortcut=False)
        self.detect = Detect(classes, (4 * w, 8 * w, 16 * w))

    def forward(self, x):
        c3 = self.p3(self.stem(x))
        c4 = self.p4(c3)
        t5 = self.reduce5(self.p5(c4))
        t4 = self.reduce4(self.top4(torch.cat([self.up(t5), c4], 1)))
        p3 = self.top3(torch.cat([self.up(t4), c3], 1))
        p4 = self.bottom4(torch.cat([self.down3(p3), t4], 1))
        return self.detect([p3, p4, self.bottom5(torch.cat([self.down4(p4), t5], 1))])


def make():
    return PANet()


def inputs():
    return (torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)),)
