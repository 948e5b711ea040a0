"""One trunk for several tasks: pixels (classes and depth), the whole image (classes and numbers), in a dictionary.

A residual trunk with inverted bottlenecks, a decoder with skips for the pixels, attention of each task's own over the
shared features (MTAN, Liu et al. 2019), and weights of the losses that the forward pass does not read (Kendall 2018).
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inner, outer, kernel=3, stride=1, groups=1):
    layers = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outer)
    return nn.Sequential(*layers, nn.ReLU6())


class Inverted(nn.Module):
    def __init__(self, width, expand=3):
        super().__init__()
        self.layers = nn.Sequential(
            conv(width, width * expand, 1), conv(width * expand, width * expand, groups=width * expand),
            nn.Conv2d(width * expand, width, 1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x):
        return x + self.layers(x)


class TaskAttention(nn.Module):
    """What of the shared features a task looks at."""

    def __init__(self, width):
        super().__init__()
        self.mask = nn.Sequential(conv(width, width // 2, 1), nn.Conv2d(width // 2, width, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.mask(x)


class Pixels(nn.Module):
    def __init__(self, widths, outputs):
        super().__init__()
        self.attention = TaskAttention(widths[2])
        self.up1, self.up2 = conv(widths[2] + widths[1], 24), conv(24 + widths[0], 16)
        self.out = nn.Conv2d(16, outputs, 1)

    def forward(self, features, size):
        x = self.attention(features[2])
        for layer, skip in ((self.up1, features[1]), (self.up2, features[0])):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = layer(torch.cat([x, skip], 1))
        return F.interpolate(self.out(x), size=size, mode="bilinear", align_corners=False)


class Global(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.attention, self.hidden, self.out = TaskAttention(width), nn.Linear(width, 24), nn.Linear(24, outputs)

    def forward(self, features):
        pooled = F.adaptive_avg_pool2d(self.attention(features[2]), 1).flatten(1)
        return self.out(F.dropout(F.relu(self.hidden(pooled)), 0.2, self.training))


class MultiTask(nn.Module):
    def __init__(self, widths=(16, 24, 32)):
        super().__init__()
        self.stem, self.stage1 = conv(3, widths[0], stride=2), Inverted(widths[0])
        self.stage2 = nn.Sequential(conv(widths[0], widths[1], stride=2), Inverted(widths[1]))
        self.stage3 = nn.Sequential(conv(widths[1], widths[2], stride=2), Inverted(widths[2]))
        self.tasks = nn.ModuleDict({
            "segmentation": Pixels(widths, 5), "depth": Pixels(widths, 1),
            "classes": Global(widths[2], 7), "age": Global(widths[2], 1),
        })  # fmt: skip
        self.log_variances = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in self.tasks})

    def forward(self, image):
        features = [self.stage1(self.stem(image))]
        for stage in (self.stage2, self.stage3):
            features.append(stage(features[-1]))
        return {
            name: head(features, image.shape[-2:]) if isinstance(head, Pixels) else head(features)
            for name, head in self.tasks.items()
        }


def make():
    """Return the model."""
    return MultiTask()


def inputs():
    """Return its inputs."""
    return (torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1)),)
