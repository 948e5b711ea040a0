"""The options of the elastic MobileNetV3 space."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from compress.core.config import Config, Numbers
from compress.core.errors import InputError
from spaces.mobilenetv3.skeletons import SKELETONS

_ordered = AfterValidator(lambda values: values and tuple(sorted(set(values))))
"""Smallest first, each once: the first and the last choice make the smallest and the largest network."""


class MobileNetV3Config(Config):
    """The skeleton and what may be chosen on it."""

    skeleton: Literal["ofa", "large", "small", "v2", "leyolo", "tiny"] = Field(
        "ofa", description="stages, widths, strides, gates and activations; ofa is Once-for-All's"
    )
    dataset: Literal["imagenet", "cifar"] = Field(
        "imagenet", description="cifar: 10 classes at 32 pixels, and the skeleton's first two strides of 2 become 1"
    )
    kernels: Annotated[tuple[Annotated[Literal[3, 5, 7], Numbers()], ...], _ordered] = Field(
        (3, 5, 7), min_length=1, description="kernel sides of a block's depthwise convolution, in pixels"
    )
    expands: Annotated[tuple[Annotated[int | float, Field(ge=1, le=10)], ...] | None, _ordered] = Field(
        None, min_length=1, description="middle channels of a block, in terms of its input's; null: the skeleton's"
    )
    depths: Annotated[tuple[Annotated[int, Field(ge=1, le=10)], ...] | None, _ordered] = Field(
        None, min_length=1, description="blocks of a stage; null: the skeleton's"
    )
    widths: Annotated[tuple[Annotated[float, Field(gt=0, le=4)], ...], _ordered] = Field(
        (1.0,), min_length=1, description="width multipliers of a stage; searched where there are several"
    )
    resolutions: Annotated[tuple[Annotated[int, Field(ge=8)], ...], _ordered] = Field(
        (), description="image sides in pixels; searched where there are several"
    )
    se: Literal["skeleton", "searched"] = Field(
        "skeleton", description="squeeze-and-excite: where the skeleton has it, or a decision of every block"
    )
    width: float = Field(1.0, gt=0, le=4, description="width multiplier of the whole network")
    strides: tuple[Annotated[Literal[1, 2], Numbers()], ...] | None = Field(
        None, description="of the stem, the first block and each stage; null: the skeleton's, as dataset has it"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of features dropped before the classifier in training")


def strides(config: MobileNetV3Config) -> tuple[int, ...]:
    """Return the strides of the stem, of the first block and of each stage; InputError for a wrong number of them."""
    usual = SKELETONS[config.skeleton].strides()
    if config.strides is not None:
        if len(config.strides) != len(usual):
            raise InputError(
                f"option strides: got {len(config.strides)} strides; skeleton {config.skeleton} has {len(usual)}: "
                f"of the stem, of the first block and of {len(usual) - 2} stages"
            )
        return config.strides
    if config.dataset == "imagenet":
        return usual
    second = [position for position, stride in enumerate(usual) if stride == 2][1]
    return (1,) * (second + 1) + usual[second + 1 :]
