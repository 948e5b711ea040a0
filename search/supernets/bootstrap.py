"""The parts of bootstrapping without labels: heads, loss, ensemble target, moving average (BYOL, Grill et al. 2020).

BossNAS (Li et al. 2021, section 3.2) has the mean over several paths as the target in place of one network's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import InputError
from spaces.architecture import Choice
from spaces.supernet import SupernetBlock


class Projector(nn.Module):
    """Features of any of a block's widths to one vector: average over the map, and a perceptron of one hidden layer.

    Where a block has several widths, each is brought to the largest first, and to the size of the smallest map: by a
    depthwise convolution whose kernel and stride are what the map is larger by, a 1x1 convolution and batch norm.
    """

    def __init__(self, outputs: Mapping[int, int], hidden: int, out: int) -> None:
        """`outputs` are those of a `SupernetBlock`."""
        super().__init__()
        width = max(outputs)
        several = outputs if len(outputs) > 1 else {}
        self.scales = dict(several)
        self.adapters = nn.ModuleDict(
            {str(channels): _adapter(channels, width, scale) for channels, scale in several.items()}
        )
        self.perceptron = perceptron(width, hidden, out)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out)."""
        if self.adapters:
            channels, scale = features.shape[1], self.scales[features.shape[1]]
            if min(features.shape[2:]) < scale:
                sides = f"{features.shape[2]}x{features.shape[3]}"
                raise InputError(f"a map of {sides} is too small to be shrunk {scale} times; give larger images")
            features = self.adapters[str(channels)](features)
        out: Tensor = self.perceptron(features.mean((2, 3)))
        return out


def _adapter(channels: int, width: int, scale: int) -> nn.Sequential:
    shrink = [nn.Conv2d(channels, channels, scale, scale, groups=channels, bias=False)] if scale > 1 else []
    return nn.Sequential(*shrink, nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))


def perceptron(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return linear, batch norm, ReLU, linear: (N, width) to (N, out)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


class Branch(nn.Module):
    """A block with what stands on it: the projector, and online the predictor."""

    def __init__(self, block: SupernetBlock, *heads: nn.Module) -> None:
        super().__init__()
        self.block, self.heads = block, nn.Sequential(*heads)

    def activate(self, path: Mapping[str, Choice]) -> None:
        """Let `forward` compute a path."""
        self.block.activate(path)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, C, H, W) of the block before to vectors (N, out)."""
        out: Tensor = self.heads(self.block(features))
        return out


def bootstrap_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return -2 cos of the vectors (N, D) of each sample, averaged: their squared distance on the sphere, less 2."""
    return -2 * F.cosine_similarity(predicted, target, dim=1).mean()


def ensemble(projections: Iterable[Tensor]) -> Tensor:
    """Return the mean of the normalised projections (N, D) of all paths: their centre; one path's is its own."""
    unit = [F.normalize(each, dim=1) for each in projections]
    return torch.stack(unit).mean(0)


def target_momentum(update: int, updates: int, start: float = 0.99) -> float:
    """Return how much of the target is kept after update `update` of `updates`: from `start` to 1 along a cosine."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * update / updates)) / 2


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the parameters of `target` toward those of `online`, which has the same; batch-norm statistics stay."""
    ours: list[Tensor] = list(target.parameters())
    theirs: list[Tensor] = list(online.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - momentum)
