"""Masks: class numbers in one channel, checked against the image and the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import torch
from pydantic import Field
from torchvision import tv_tensors

from compress.core.errors import InputError
from evaluators.datasets.boxes import size_of
from evaluators.datasets.decoding import read, reason
from evaluators.datasets.joint import IGNORED
from evaluators.datasets.sample_sets import looked_at
from evaluators.datasets.samples import Samples

Array = np.ndarray[Any, Any]
Number = Annotated[int, Field(ge=0, le=IGNORED)]
Ids = dict[Number, Number]
"""The class number of ids in masks."""
Classes = Annotated[int, Field(ge=2, le=IGNORED)] | Annotated[list[str], Field(min_length=2, max_length=IGNORED)]
"""How many classes there are, or their names."""


def named(classes: Classes) -> list[str]:
    """Return the names of classes that may only be counted."""
    return classes if isinstance(classes, list) else [f"class {number}" for number in range(classes)]


def check_ids(ids: Ids | None, classes: Classes) -> None:
    """Raise ValueError where ids stand for classes that there are not."""
    count = classes if isinstance(classes, int) else len(classes)
    beyond = [f"{ident}: {number}" for ident, number in (ids or {}).items() if count <= number != IGNORED]
    if beyond:
        raise ValueError(f"ids: {beyond[0]} is none of the {count} classes; allowed: 0 to {count - 1}, and {IGNORED}")


@dataclass(frozen=True)
class MaskReader:
    """Reads masks, which hold class numbers, or ids that stand for some.

    Attributes:
        classes: how many there are; 255 in a mask marks pixels that do not count.
        ids: the class of each id in the files, where these are no class numbers; pixels of other ids do not count.
    """

    classes: int
    ids: Mapping[int, int] | None = None

    def __call__(self, file: str | BinaryIO, name: str) -> Array:
        """Return class numbers uint8 (H, W); InputError, with the `name` of the mask, where it is none."""
        from PIL import Image

        try:
            with Image.open(file) as image:
                image.load()
                mode, values = image.mode, np.array(image)
        except Exception as error:  # Pillow's formats raise nearly anything of a damaged file
            raise InputError(f"its mask {name!r} cannot be read ({reason(error)})") from error
        if values.ndim != 2 or values.dtype.kind not in "iub":
            allowed = "one channel of class numbers (L, P)"
            raise InputError(f"its mask {name!r} is of Pillow's mode {mode}; allowed: {allowed}")
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > IGNORED:
            raise InputError(f"its mask {name!r} holds {low if low < 0 else high}; allowed: 0 to {IGNORED}")
        numbers: Array = values.astype(np.uint8)
        if self.ids is not None:
            numbers = self._table[numbers]
            return numbers
        beyond = numbers[(numbers >= self.classes) & (numbers != IGNORED)]
        if beyond.size:
            allowed = f"0 to {self.classes - 1}, and {IGNORED} for pixels that do not count"
            raise InputError(f"its mask {name!r} holds the class {int(beyond.max())}; allowed: {allowed}")
        return numbers

    @cached_property
    def _table(self) -> Array:
        """The class of each id, IGNORED of those that have none."""
        table = np.full(256, IGNORED, np.uint8)
        for ident, number in (self.ids or {}).items():
            table[ident] = number
        return table


def with_mask(image: Any, numbers: Array, name: str) -> tuple[Any, tv_tensors.Mask]:
    """Return an image and its mask; InputError, with the `name` of the mask, where it has another size."""
    size = size_of(image)
    if numbers.shape != size:
        shown = [f"{width}x{height}" for height, width in (numbers.shape, size)]
        raise InputError(f"its mask {name!r} has {shown[0]} pixels; allowed: the image's {shown[1]}")
    return image, tv_tensors.Mask(torch.from_numpy(numbers))


@dataclass(frozen=True)
class MaskFiles:
    """Reads pairs of an image file and a mask file."""

    pairs: Sequence[tuple[Path, Path]]
    reader: MaskReader

    def __call__(self, index: int) -> tuple[Any, tv_tensors.Mask]:
        """Return an image and its mask uint8 (H, W)."""
        image, mask = map(str, self.pairs[index])
        numbers = self.reader(mask, mask)
        return with_mask(read(image, numbers.shape), numbers, mask)

    def name(self, index: int) -> str:
        """Return the file of an image."""
        return str(self.pairs[index][0])


def mask_samples(pairs: Sequence[tuple[Path, Path]], reader: MaskReader, key: str) -> Samples:
    """Return the pairs as samples; InputError, beginning with `key`, where files are absent or the first are wrong."""
    for pair in pairs:
        for path in pair:
            if not path.is_file():
                raise InputError(f"{key}: there is no file {str(path)!r}")
    files = MaskFiles(pairs, reader)
    return looked_at(Samples(files, range(len(pairs)), name=files.name), key)
