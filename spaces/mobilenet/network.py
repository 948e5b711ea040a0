"""A MobileNet built from its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.mobilenet.blocks import activation, block, initialise
from spaces.mobilenet.tables import BlockRow, NetworkRows

MakeBlock = Callable[[int, BlockRow], nn.Module]


class Stages(nn.Module):
    """Stem and stages of blocks; `make` builds each block from its input channels and its row."""

    def __init__(self, rows: NetworkRows, in_chans: int = 3, make: MakeBlock = block) -> None:
        super().__init__()
        self.rows = rows
        self.stem = nn.Conv2d(in_chans, rows.stem, 3, rows.stem_stride, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(rows.stem)
        self.stem_activation = activation(rows.stem_activation)
        stages = []
        channels = rows.stem
        for stage in rows.blocks:
            stages.append(stage_of(channels, stage, make))
            channels = stage[-1].out if stage else channels
        self.stages = nn.ModuleList(stages)

    def maps(self, images: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Return the maps after the stages numbered `after` (from 0, rising) for images (N, in_chans, H, W)."""
        x, found = self._enter(images), []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in after:
                found.append(x)
        return found

    def _enter(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.stem_activation(self.stem_norm(self.stem(images))))


class Trunk(Stages):
    """What a MobileNet computes before pooling: stem, stages of blocks, last 1x1 convolution."""

    def __init__(self, rows: NetworkRows, in_chans: int = 3, make: MakeBlock = block) -> None:
        super().__init__(rows, in_chans, make)
        channels = next((stage[-1].out for stage in reversed(rows.blocks) if stage), rows.stem)
        self.last = nn.Conv2d(channels, rows.last_conv, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(rows.last_conv)
        self.last_activation = activation(rows.last_activation)

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the last map (N, last_conv, H / stride, W / stride)."""
        x = self._enter(images)
        for stage in self.stages:
            x = stage(x)
        return self._leave(x)

    def tapped(self, images: Tensor, at: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the last map, and the map after the block `at` (stage, layer), counted from 0."""
        x = tap = self._enter(images)
        for position, stage in enumerate(self.stages):
            for layer, module in enumerate(stage.children()):
                x = module(x)
                if (position, layer) == at:
                    tap = x
        return self._leave(x), tap

    def _leave(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last_activation(self.last_norm(self.last(x))))


class MobileNet(Trunk):
    """A classifier: the trunk, global average, optional hidden layer, linear classifier."""

    def __init__(self, rows: NetworkRows, task: Task, make: MakeBlock = block) -> None:
        super().__init__(rows, task.in_chans, make)
        hidden = rows.head is not None
        self.head = nn.Conv2d(rows.last_conv, rows.head, 1) if rows.head is not None else None
        self.head_activation = activation(rows.head_activation) if hidden else None
        self.classifier = nn.Linear(rows.head or rows.last_conv, task.num_outputs)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        features = self.features(images).mean((2, 3), keepdim=True)
        if self.head is not None and self.head_activation is not None:
            features = self.head_activation(self.head(features))
        features = F.dropout(features.flatten(1), self.rows.dropout, self.training)
        logits: Tensor = self.classifier(features)
        return logits


def stage_of(in_channels: int, rows: tuple[BlockRow, ...], make: MakeBlock) -> nn.Sequential:
    """Return blocks in a row, each built by `make` from its input channels and its row."""
    blocks = nn.Sequential()
    for row in rows:
        blocks.append(make(in_channels, row))
        in_channels = row.out
    return blocks
