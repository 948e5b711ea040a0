"""scikit-learn's handwritten digits."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from compress.core.config import Numbers
from evaluators.datasets.arrays import Arrays, ArraySet
from evaluators.datasets.dataset import datasets
from evaluators.datasets.division import drawn_by_class

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
    pixels, classes = _table()
    images = torch.from_numpy(np.round(pixels * (255 / 16)).astype(np.uint8)).reshape(-1, 8, 8, 1)
    labels = torch.from_numpy(classes)
    # the split is part of the data set: the same for every seed
    train, test = drawn_by_class(classes, _DIGITS_TEST, seed=0)
    return ArraySet(images[train], labels[train], images[test], labels[test], [str(n) for n in range(10)])


def _table() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return scikit-learn's pixels (N, 64), 0 to 16, and classes (N,), from its file: its import takes seconds."""
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if path is not None and path.is_file():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return pixels, classes.astype(np.int64)
