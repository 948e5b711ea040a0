"""Feature pyramid with lateral sums (Lin et al., 2017) and heads shared between its levels (FCOS, Tian et al., 2019).

A residual backbone of bottlenecks, five levels, towers with group norm, a learned scale for every level.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, i, width, stride):
        super().__init__()
        o = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(i, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, o, 1, bias=False), nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += identity
        return self.relu(x)


class Pyramid(nn.Module):
    def __init__(self, widths, out):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, out, 1) for width in widths)
        self.output = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for _ in widths)
        self.p6, self.p7 = (nn.Conv2d(out, out, 3, 2, 1) for _ in range(2))

    def forward(self, maps):
        x = self.lateral[-1](maps[-1])
        results = [self.output[-1](x)]
        for place in range(len(maps) - 2, -1, -1):
            lateral = self.lateral[place](maps[place])
            x = lateral + F.interpolate(x, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.output[place](x))
        results.append(self.p6(results[-1]))
        results.append(self.p7(results[-1].relu()))
        return results


class Head(nn.Module):
    def __init__(self, width, classes, levels, convs=2):
        super().__init__()
        self.cls_tower, self.box_tower = (
            nn.Sequential(
                *(
                    layer
                    for _ in range(convs)
                    for layer in (nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU())
                )
            )
            for _ in range(2)
        )
        self.cls_logits = nn.Conv2d(width, classes, 3, padding=1)
        self.bbox_pred, self.centerness = nn.Conv2d(width, 4, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.linspace(0.8, 1.2, levels))

    def forward(self, maps):
        logits, boxes, centers = [], [], []
        for level, x in enumerate(maps):
            cls, box = self.cls_tower(x), self.box_tower(x)
            logits.append(self.cls_logits(cls))
            boxes.append(F.relu(self.bbox_pred(box) * self.scales[level]))
            centers.append(self.centerness(box))
        flat = ([x.flatten(2).permute(0, 2, 1) for x in each] for each in (logits, boxes, centers))
        return dict(zip(("logits", "boxes", "centerness"), (torch.cat(each, 1) for each in flat), strict=True))


class Fcos(nn.Module):
    def __init__(self, classes=4, width=8, out=32):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.stages, i = nn.ModuleList(), width
        for level in range(4):
            o = width * 2**level
            self.stages.append(nn.Sequential(Bottleneck(i, o, 1 if level == 0 else 2), Bottleneck(4 * o, o, 1)))
            i = 4 * o
        self.fpn = Pyramid([4 * width * 2**level for level in (1, 2, 3)], out)
        self.head = Head(out, classes, 5)

    def forward(self, x):
        maps, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.head(self.fpn(maps[1:]))


def make():
    return Fcos()


def inputs():
    return (torch.randn(1, 3, 72, 88, generator=torch.Generator().manual_seed(1)),)
