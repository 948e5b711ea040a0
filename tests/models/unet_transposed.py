"""U-Net for segmentation (Ronneberger et al., 2015): double convolutions, transposed convolutions, skips concatenated.

The upsampled map is padded to the size of the skip, as for images whose sides are no powers of two.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class DoubleConv(nn.Sequential):
    def __init__(self, i, o):
        super().__init__(
            nn.Conv2d(i, o, 3, padding=1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, padding=1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.up = nn.ConvTranspose2d(i, i // 2, 2, stride=2)
        self.conv = DoubleConv(i, o)

    def forward(self, x, skip):
        x = self.up(x)
        dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    def __init__(self, classes=5, width=16, levels=3):
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.inc = DoubleConv(3, width)
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Up(b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.outc = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        maps = [self.inc(x)]
        for block in self.down:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for block in self.up:
            x = block(x, maps.pop())
        return self.outc(x)


def make():
    return UNet()


def inputs():
    return (torch.randn(1, 3, 36, 44, generator=torch.Generator().manual_seed(1)),)
