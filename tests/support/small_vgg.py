"""A sequential network as people write them, for tests that take a model from Python."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def build(num_classes: int = 5, in_chans: int = 3) -> nn.Sequential:
    """Convolutions 16, 16, 24, 24 with one stride and a pool, for images of any size."""
    layers: list[nn.Module] = []
    widths = [in_chans, 16, 16, 24, 24]
    for number, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, stride=1 + (number == 2), padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes))
