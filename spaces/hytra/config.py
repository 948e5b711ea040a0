"""Options of the space."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from compress.core.config import Config, Numbers


class HyTraConfig(Config):
    """Which fabric, and in which of the two published versions its operations are built."""

    version: Literal["search", "retrain"] = Field(
        "search",
        description="search: as in the supernet; retrain: as found networks are trained",
    )
    layers: int = Field(16, ge=1, le=64, description="layers of a path")
    blocks: int = Field(4, ge=1, description="blocks of equally many layers, which block-wise search trains in turn")
    channels: tuple[int, ...] = Field(
        (256, 512, 1024, 2048),
        min_length=2,
        max_length=5,
        description="output channels of each scale, largest map first; multiples of 4",
    )
    block_scales: tuple[int, ...] | None = Field(
        None,
        description="how many of the smallest scales each block uses (published: 4, 3, 2, 2); null: all",
    )
    attention_scales: int = Field(2, ge=0, description="how many of the smallest scales offer attention")
    head_dim: int = Field(64, ge=1, description="channels of one attention head; divides a quarter of the channels")
    stem: Literal["imagenet", "cifar"] = Field(
        "imagenet", description="imagenet: 7x7 stride 2 and 3x3 max pooling; cifar: 3x3 stride 1"
    )
    stem_channels: int = Field(64, ge=1, description="channels of the stem")
    se: bool = Field(False, description="squeeze-and-excitation in ResConv, and SiLU in place of ReLU everywhere")
    last_stride: Annotated[Literal[1, 2], Numbers()] = Field(
        2, description="stride into the smallest scale (retrain version): 1 keeps the map, as in BossNet-T1"
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="stochastic depth of the last layer's ResConv; grows linearly with depth, from 0"
    )

    @field_validator("blocks")
    @classmethod
    def _divides_layers(cls, blocks: int, info: ValidationInfo) -> int:
        layers = info.data.get("layers", blocks)
        if layers % blocks:
            raise ValueError(f"must divide layers, which is {layers}")
        return blocks

    @field_validator("channels")
    @classmethod
    def _quarters(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 4 or width % 4 for width in channels) or list(channels) != sorted(set(channels)):
            raise ValueError("must be growing multiples of 4")
        return channels

    @field_validator("block_scales")
    @classmethod
    def _within_scales(cls, scales: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        blocks, largest = info.data.get("blocks"), len(info.data.get("channels", ()))
        falling = scales is None or list(scales) == sorted(scales, reverse=True)
        if scales is not None and blocks and largest:
            if len(scales) != blocks or not falling or not all(1 <= count <= largest for count in scales):
                raise ValueError(f"must be {blocks} numbers from 1 to {largest} that do not grow")
        return scales

    @field_validator("attention_scales")
    @classmethod
    def _not_more_than_scales(cls, attention: int, info: ValidationInfo) -> int:
        scales = len(info.data.get("channels", ())) or attention
        if attention > scales:
            raise ValueError(f"must be at most the number of scales, {scales}")
        return attention

    @field_validator("head_dim")
    @classmethod
    def _divides_widths(cls, head_dim: int, info: ValidationInfo) -> int:
        channels, attention = info.data.get("channels", ()), info.data.get("attention_scales", 0)
        widths = [width // 4 for width in channels[len(channels) - attention :]]
        if any(width % head_dim for width in widths):
            raise ValueError(f"must divide a quarter of the channels where attention is offered: {widths}")
        return head_dim

    @field_validator("last_stride")
    @classmethod
    def _kept_in_retraining_only(cls, stride: Literal[1, 2], info: ValidationInfo) -> Literal[1, 2]:
        if stride == 1 and info.data.get("version") == "search":
            raise ValueError("1 needs version: retrain")
        return stride
