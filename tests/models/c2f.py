"""YOLOv8-like detector: C2f blocks (a chunk in two, a list that every block appends to, all concatenated), decoupled
heads, boxes as distributions over distances (Generalized Focal Loss, Li et al., 2020)."""

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
        self.cv1, self.cv2, self.add = Conv(c, c, 3), Conv(c, c, 3), shortcut

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    def __init__(self, i, o, n=1, shortcut=False):
        super().__init__()
        self.c = o // 2
        self.cv1, self.cv2 = Conv(i, 2 * self.c), Conv((2 + n) * self.c, o)
        self.m = nn.ModuleList(Bottleneck(self.c, shortcut) for _ in range(n))

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C2fSplit(C2f):
    """The same with the sizes of the parts as a number that the block keeps."""

    def forward(self, x):
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class DFL(nn.Module):
    """The mean of a distribution over `bins` distances, as a convolution with the weights 0, 1, 2, ..."""

    def __init__(self, bins):
        super().__init__()
        self.conv, self.bins = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False), bins
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)

    def forward(self, x):
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    def __init__(self, classes, widths, bins=8):
        super().__init__()
        self.nc, self.no, self.bins = classes, classes + 4 * bins, bins
        c2, c3 = max(16, widths[0] // 4, 4 * bins), max(widths[0], classes)
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(w, c2, 3), Conv(c2, c2, 3), nn.Conv2d(c2, 4 * bins, 1)) for w in widths
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(Conv(w, c3, 3), Conv(c3, c3, 3), nn.Conv2d(c3, classes, 1)) for w in widths
        )
        self.dfl = DFL(bins)

    def forward(self, maps):
        maps = [torch.cat((box(x), cls(x)), 1) for x, box, cls in zip(maps, self.cv2, self.cv3, strict=True)]
        x = torch.cat([each.view(each.shape[0], self.no, -1) for each in maps], 2)
        box, cls = x.split((4 * self.bins, self.nc), 1)
        return torch.cat((self.dfl(box), cls.sigmoid()), 1)


class Yolo(nn.Module):
    def __init__(self, classes=3, w=8):
        super().__init__()
        self.stem = nn.Sequential(Conv(3, w, 3, 2), Conv(w, 2 * w, 3, 2), C2f(2 * w, 2 * w, 1, True))
        self.p3 = nn.Sequential(Conv(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 2, True))
        self.p4 = nn.Sequential(Conv(4 * w, 8 * w, 3, 2), C2fSplit(8 * w, 8 * w, 2, True))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.top3 = C2f(12 * w, 4 * w, 1)
        self.down3, self.bottom4 = Conv(4 * w, 4 * w, 3, 2), C2fSplit(12 * w, 8 * w, 1)
        self.detect = Detect(classes, (4 * w, 8 * w))

    def forward(self, x):
        c3 = self.p3(self.stem(x))
        c4 = self.p4(c3)
        p3 = self.top3(torch.cat([self.up(c4), c3], 1))
        return self.detect([p3, self.bottom4(torch.cat([self.down3(p3), c4], 1))])


def make():
    return Yolo()


def inputs():
    return (torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)),)
