"""Options of the DARTS space."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.core.config import Config


class DARTSConfig(Config):
    """How cells are stacked, and how the network is normalised and regularised; the defaults are those for CIFAR-10."""

    channels: int = Field(36, ge=2, description="channels of the first cells; doubled by the two that halve the map")
    layers: int = Field(20, ge=3, description="cells, of which those after one and two thirds halve the map")
    stem: Literal["cifar", "imagenet"] = Field(
        "cifar", description="a 3x3 convolution; imagenet: three of stride 2, whose last two the first cell reads"
    )
    norm: Literal["affine", "search"] = Field(
        "affine",
        description="batch norm in cells; search: as in the published search phase, without affine parameters and with "
        "one behind every pooling",
    )
    auxiliary: bool = Field(False, description="an auxiliary head behind the second halving, used in training only")
    drop_path_keep: float = Field(
        1.0, gt=0, le=1, description="probability of keeping an operation's output at the end of training"
    )
