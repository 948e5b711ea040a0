"""What a network consists of, layer by layer: what the builder builds and the arithmetic adds up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compress.core.errors import InputError
from spaces.hytra.config import HyTraConfig
from spaces.hytra.fabric import Operation
from spaces.layers import halved


@dataclass(frozen=True)
class LayerPlan:
    """One layer.

    Attributes:
        operation: ResConv, ResAtt, or the 3x3 convolution that stands for a stage without layers.
        in_channels: channels that come in (after the patches, if any).
        channels: channels that go out; operations work on a quarter of them.
        stride: 1 or 2.
        in_size: side of the map that comes in (after the patches, if any), in pixels.
        patch: side of the patches that bring the stem's map to the first layer's scale; 0 without.
        drop_path: probability to leave the operation out for one image in training.
    """

    name: str
    operation: Operation | Literal["empty"]
    in_channels: int
    channels: int
    stride: int
    in_size: int
    patch: int = 0
    drop_path: float = 0.0

    @property
    def size(self) -> int:
        """Side of the map that goes out, in pixels."""
        return halved(self.in_size) if self.stride == 2 else self.in_size


def stem_size(config: HyTraConfig, img_size: int) -> int:
    """Return the side of the stem's map."""
    return halved(halved(img_size)) if config.stem == "imagenet" else img_size


def drop_path_rate(config: HyTraConfig, layer: int) -> float:
    """Return the stochastic depth of a layer: it grows linearly, from 0 in the first to the option in the last."""
    return config.drop_path * layer / max(1, config.layers - 1)


def make_plan(config: HyTraConfig, path: Sequence[tuple[int, Operation]], img_size: int) -> list[LayerPlan]:
    """Return the layers of a path (scale and operation of every layer)."""
    return (_searched if config.version == "search" else _retrained)(config, path, img_size)


def _searched(config: HyTraConfig, path: Sequence[tuple[int, Operation]], img_size: int) -> list[LayerPlan]:
    """Search version: patches bring the stem's map to the scale of the first layer."""
    widths = config.channels[::-1]
    before = path[0][0]
    patch = 2 ** (len(widths) - 1 - before)
    size, channels = stem_size(config, img_size) // patch, widths[before] // 4
    if size == 0:
        raise InputError(f"images of {img_size} pixels are too small to start on scale {before} of this space")
    plan: list[LayerPlan] = []
    for layer, (scale, operation) in enumerate(path):
        drop_path = drop_path_rate(config, layer)
        stride = 1 + before - scale
        row = LayerPlan(f"layer{layer}", operation, channels, widths[scale], stride, size, patch, drop_path)
        plan.append(row)
        size, channels, before, patch = row.size, row.channels, scale, 0
    return plan


def _retrained(config: HyTraConfig, path: Sequence[tuple[int, Operation]], img_size: int) -> list[LayerPlan]:
    """Retraining version: every stage has its stride; one without layers is a convolution with that stride.

    The released model strides by 2 in such a convolution even in the first stage, whose map is the stem's, and so works
    on maps half as large as published in ViT-T/16, Random-T and UnNAS-T. Here the maps are as published. The MACs
    reported for those three count such a convolution with a quarter of its channels on both sides.
    """
    size, channels = stem_size(config, img_size), config.stem_channels
    plan: list[LayerPlan] = []
    for stage, width in enumerate(config.channels):
        scale = len(config.channels) - 1 - stage
        stride = 1 if stage == 0 else config.last_stride if scale == 0 else 2
        layers = [(at, operation) for at, (on, operation) in enumerate(path) if on == scale]
        if not layers:
            plan.append(LayerPlan(f"stage{stage}", "empty", channels, width, stride, size))
        for position, (at, operation) in enumerate(layers):
            step = stride if position == 0 else 1
            drop_path = drop_path_rate(config, at)
            row = LayerPlan(f"layer{at}", operation, channels, width, step, size, drop_path=drop_path)
            plan.append(row)
            size, channels = row.size, row.channels
        size, channels = plan[-1].size, plan[-1].channels
    return plan
