"""High-resolution network (Sun et al., 2019): branches of several resolutions that exchange their maps by sums."""

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(i, o, k=3, s=1):
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o))


class BasicBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class Exchange(nn.Module):
    """Blocks at every resolution, then each branch gets the sum of all, brought to its own size and width."""

    def __init__(self, widths, blocks=1):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(w) for _ in range(blocks))) for w in widths)
        self.fuse = nn.ModuleList()
        for i, to in enumerate(widths):
            row = nn.ModuleList()
            for j, of in enumerate(widths):
                if j > i:
                    row.append(conv_bn(of, to, 1))
                elif j == i:
                    row.append(nn.Identity())
                else:
                    steps = [nn.Sequential(conv_bn(of, of, 3, 2), nn.ReLU()) for _ in range(i - j - 1)]
                    row.append(nn.Sequential(*steps, conv_bn(of, to, 3, 2)))
            self.fuse.append(row)

    def forward(self, maps):
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        results = []
        for i, row in enumerate(self.fuse):
            y = None
            for j, layer in enumerate(row):
                x = layer(maps[j])
                if j > i:
                    x = F.interpolate(x, size=maps[i].shape[2:], mode="bilinear", align_corners=False)
                y = x if y is None else y + x
            results.append(F.relu(y))
        return results


class HRNet(nn.Module):
    def __init__(self, classes=4, w=16):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, w, 3, 2), nn.ReLU(), conv_bn(w, 2 * w, 3, 2), nn.ReLU(), BasicBlock(2 * w))
        self.transition1 = nn.ModuleList([conv_bn(2 * w, w), conv_bn(2 * w, 2 * w, 3, 2)])
        self.stage2 = Exchange([w, 2 * w])
        self.transition2 = conv_bn(2 * w, 4 * w, 3, 2)
        self.stage3 = nn.Sequential(Exchange([w, 2 * w, 4 * w]), Exchange([w, 2 * w, 4 * w]))
        self.head = nn.Sequential(conv_bn(7 * w, 7 * w, 1), nn.ReLU(), nn.Conv2d(7 * w, classes, 1))

    def forward(self, image):
        x = self.stem(image)
        maps = self.stage2([F.relu(layer(x)) for layer in self.transition1])
        maps = self.stage3([*maps, F.relu(self.transition2(maps[-1]))])
        size = maps[0].shape[2:]
        ups = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps[1:]]
        x = self.head(torch.cat([maps[0], *ups], 1))
        return F.interpolate(x, size=image.shape[2:], mode="bilinear", align_corners=False)


def make():
    return HRNet()


def inputs():
    return (torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)),)
