"""scikit-learn's handwritten digits."""

from __future__ import annotations

import functools
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from compress.core.config import Numbers
from evaluators.datasets.arrays import Arrays, ArraySet
from evaluators.datasets.dataset import datasets

_DIGITS_TEST = 360


@datasets.register("digits")
class DigitsConfig(Arrays):
    """The 1,797 handwritten digits that come with scikit-learn: 8x8 pixels, 16 grey levels, always at hand."""

    name: Literal["digits"]
    image_size: int | None = Field(
        32, ge=8, le=4096, description="pixels a side that the 8x8 images are enlarged to; null: the model's"
    )
    channels: Annotated[Literal[1, 3], Numbers()] = Field(3, description="1 grey, 3 the same thrice")
    augment: Literal["none", "flip", "shift", "crop_flip"] = Field(
        "shift", description="shift and crop move the image by up to an eighth of its side; flip mirrors it"
    )

    def open(self) -> ArraySet:
        """Read the set."""
        return digits()


@functools.cache
def digits() -> ArraySet:
    """Return the digits, 8x8 grey pixels each, divided into training and test images."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images = torch.from_numpy(np.round(found.images * (255 / 16)).astype(np.uint8)).unsqueeze(3)
    labels = torch.from_numpy(found.target.astype(np.int64))
    # the split is part of the data set: the same for every seed
    train, test = train_test_split(np.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=0)
    return ArraySet(images[train], labels[train], images[test], labels[test], [str(n) for n in range(10)])
