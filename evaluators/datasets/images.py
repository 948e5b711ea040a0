"""What a recipe may say of every set of images."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from compress.core.config import Numbers
from evaluators.datasets.dataset import Dataset

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Images(Dataset):
    """What every set of images takes."""

    image_size: int | None = Field(
        None, ge=4, le=4096, description="pixels a side; null: the model's where it is fixed, else the images' own"
    )
    channels: Annotated[Literal[1, 3], Numbers()] | None = Field(
        None, description="1 grey, 3 colour; null: the model's"
    )
    batch_size: int = Field(128, ge=1, description="images in a training batch")
    eval_batch_size: int = Field(256, ge=1, description="images in an evaluation batch")
    mean: tuple[Unit, ...] | None = Field(
        None, min_length=1, max_length=3, description="subtracted, per channel, from pixels in 0..1; null: the model's"
    )
    std: tuple[Positive, ...] | None = Field(
        None, min_length=1, max_length=3, description="divides, per channel; null: the model's, else the data's"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="how images are resized; null: the model's"
    )
    limit_train: int | None = Field(None, ge=1, description="use that many training images, balanced over classes")
    limit_test: int | None = Field(None, ge=1, description="use that many test images, balanced over classes")

    @field_validator("image_size", mode="before")
    @classmethod
    def _one_side(cls, value: Any) -> Any:
        """Return the side of a square that is written with both."""
        sides = value
        if isinstance(value, str) and re.fullmatch(r"\s*[0-9]+\s*[x×,]\s*[0-9]+\s*", value):
            sides = [int(side) for side in re.findall("[0-9]+", value)]
        if not isinstance(sides, list | tuple) or len(sides) not in (1, 2) or {type(side) for side in sides} != {int}:
            return value
        if len(set(sides)) > 1:
            raise ValueError("images of other shapes than squares: say model.input_size, such as [3, 64, 96]")
        return sides[0]
