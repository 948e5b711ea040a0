"""The options of LR-ASPP's space."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from compress.core.config import Config, Numbers
from spaces.mobilenetv3.config import MobileNetV3Config

_ordered = AfterValidator(lambda values: tuple(sorted(set(values))))
"""Smallest first, each once: the first and the last choice make the smallest and the largest network."""


class BackboneConfig(MobileNetV3Config):
    """A skeleton of the space `mobilenetv3`; its classifier is left out."""

    skeleton: Literal["ofa", "large", "small", "v2", "leyolo", "tiny"] = Field(
        "large", description="stages, widths, strides, gates and activations"
    )


class LRASPPConfig(Config):
    """The backbone and the head, and what may be chosen of them."""

    backbone: BackboneConfig = Field(default_factory=BackboneConfig, description="options of the space mobilenetv3")
    features: Annotated[tuple[Annotated[int, Field(ge=8, le=4096)], ...], _ordered] = Field(
        (64, 128, 256), min_length=1, description="channels of the head; searched where there are several"
    )
    output_stride: Annotated[Literal[4, 8, 16, 32], Numbers()] = Field(
        16, description="how many pixels a side one of the last map stands for; kernels are dilated beyond"
    )
    half_tail: bool = Field(False, description="half of the channels from the last stage on (the paper's RF2)")
