"""Options of the NASNet space."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from compress.core.config import Config
from spaces.nasnet.operations import OPERATIONS, OperationName

State = Annotated[int, Field(ge=0, le=6)]


class ConcatLists(Config):
    """The states that the two cells concatenate (0 and 1 are the inputs, 2 to 6 the blocks)."""

    normal: tuple[State, ...] = Field(..., min_length=1, description="states that the normal cell concatenates")
    reduction: tuple[State, ...] = Field(..., min_length=1, description="states that the reduction cell concatenates")

    @field_validator("normal", "reduction")
    @classmethod
    def _ascending(cls, states: tuple[int, ...]) -> tuple[int, ...]:
        if list(states) != sorted(set(states)):
            raise ValueError("states are listed once each, in ascending order")
        return states


class NASNetConfig(Config):
    """How cells are stacked, what they are made of, and how the network is regularised."""

    cells_per_stage: int = Field(2, ge=1, description="normal cells in each of the three stages (N)")
    filters: int = Field(32, ge=1, description="channels of an operation in the first stage (F); doubled per stage")
    stem: Literal["cifar", "imagenet"] = Field(
        "cifar", description="a 3x3 convolution; imagenet: one of stride 2 and two reduction cells"
    )
    stem_channels: int | None = Field(
        None, ge=1, description="channels of the stem's convolution; null is 3 x filters (cifar) or 32 (imagenet)"
    )
    wiring: Literal["mobile", "large"] = Field(
        "mobile",
        description="second input of the first normal cell after a reduction: the cell right before the reduction "
        "(mobile, also CIFAR) or the one before that (large)",
    )
    concat: ConcatLists | None = Field(
        None,
        description="states that the cells concatenate, such as {normal: [2, 3, 6], reduction: [5, 6]}; null takes "
        "those that no block reads",
    )
    operations: tuple[OperationName, ...] = Field(OPERATIONS, min_length=1, description="operations to choose from")
    combines: tuple[Literal["add", "concat"], ...] = Field(
        ("add", "concat"), min_length=1, description="how a block may combine its two operations"
    )
    auxiliary: bool = Field(False, description="an auxiliary head at the end of stage 2, used in training only")
    drop_path_keep: float = Field(
        1.0, gt=0, le=1, description="ScheduledDropPath: probability of keeping a path in the last cell at the end"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the classifier")
    norm_eps: float = Field(1e-5, gt=0, description="added to the variance in batch norm")
    norm_momentum: float = Field(0.1, gt=0, le=1, description="share of a new batch in the running statistics")
    img_size: int | None = Field(
        None, ge=1, description="image side where a task names none; null is 32 (cifar) or 224 (imagenet)"
    )

    @field_validator("operations", "combines")
    @classmethod
    def _different(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a name is listed twice")
        return names

    @model_validator(mode="after")
    def _divisible(self) -> NASNetConfig:
        if self.stem == "imagenet" and self.filters % 4:
            raise ValueError(f"filters must be a multiple of 4 with the imagenet stem; got {self.filters}")
        return self

    @property
    def first_channels(self) -> int:
        """Channels of the stem's convolution."""
        return self.stem_channels or (3 * self.filters if self.stem == "cifar" else 32)

    @property
    def concat_lists(self) -> dict[str, tuple[int, ...]] | None:
        """States that each of the two cells concatenates; None for loose ends."""
        return None if self.concat is None else {"normal": self.concat.normal, "reduction": self.concat.reduction}
