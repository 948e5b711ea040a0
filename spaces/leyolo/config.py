"""The options of LeYOLO's space."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from compress.core.config import Config, Numbers
from spaces.mobilenetv3.config import MobileNetV3Config

_ordered = AfterValidator(lambda values: tuple(sorted(set(values))))
"""Smallest first, each once: the first and the last choice make the smallest and the largest network."""

Channels = Annotated[int, Field(ge=8, le=4096)]


class BackboneConfig(MobileNetV3Config):
    """A skeleton of the space `mobilenetv3`; its last wide convolution and its classifier are left out."""

    skeleton: Literal["ofa", "large", "small", "v2", "leyolo", "tiny"] = Field(
        "leyolo", description="stages, widths, strides, gates and activations"
    )
    kernels: Annotated[tuple[Annotated[Literal[3, 5, 7], Numbers()], ...], _ordered] = Field(
        (3, 5), min_length=1, description="kernel sides of a block's depthwise convolution, in pixels"
    )


class LeYOLOConfig(Config):
    """The backbone, the pyramid and the heads, and what may be chosen of them."""

    backbone: BackboneConfig = Field(
        default_factory=BackboneConfig,
        description="options of the space mobilenetv3; its width is that of the whole detector",
    )
    neck_widths: tuple[Channels, Channels, Channels] = Field(
        (32, 64, 96), description="channels of the pyramid's levels before the width multiplier, the finest first"
    )
    neck_depths: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], _ordered] = Field(
        (1, 2, 3), min_length=1, description="blocks of each of the pyramid's four parts"
    )
    neck_kernels: Annotated[tuple[Annotated[Literal[3, 5, 7], Numbers()], ...], _ordered] = Field(
        (3, 5), min_length=1, description="kernel sides of a part's depthwise convolutions, in pixels"
    )
    neck_expands: Annotated[tuple[Annotated[int | float, Field(ge=1, le=10)], ...], _ordered] = Field(
        (1, 2), min_length=1, description="middle channels of a part's blocks, in terms of what it hands on"
    )
    head_width: Channels | None = Field(
        None,
        description="channels that the last block of every level hands to its head, before the width multiplier (64 in "
        "LeYOLO-Medium and -Large); null: the level's",
    )
    bins: int = Field(16, ge=2, le=64, description="distances that each side of a box is a mixture of, in strides")
    score_threshold: float = Field(0.001, ge=0, lt=1, description="boxes of a smaller score are left out")
    nms_iou: float = Field(0.7, gt=0, le=1, description="overlap with a better box of its class that a box may have")
    detections: int = Field(100, ge=1, description="most boxes of an image")
