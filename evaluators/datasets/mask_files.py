"""Image files with mask files: class numbers in one channel, checked against the image and the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from compress.core.errors import InputError
from evaluators.datasets.boxes import size_of
from evaluators.datasets.decoding import read, reason
from evaluators.datasets.joint import IGNORED
from evaluators.datasets.samples import Samples

_LOOKED_AT = 32  # samples of a split that are read before anything is trained


@dataclass(frozen=True)
class MaskFiles:
    """Pairs of an image and a mask, which holds class numbers, or ids that stand for some.

    Attributes:
        pairs: paths of an image and its mask.
        classes: how many there are; 255 in a mask marks pixels that do not count.
        ids: the class of each id in the files, where these are no class numbers; pixels of other ids do not count.
    """

    pairs: Sequence[tuple[Path, Path]]
    classes: int
    ids: Mapping[int, int] | None = None

    def __call__(self, index: int) -> tuple[Any, tv_tensors.Mask]:
        """Return an image and its mask uint8 (H, W)."""
        image, mask = read(str(self.pairs[index][0])), self._numbers(self.pairs[index][1])
        size = size_of(image)
        if mask.shape != size:
            shown = [f"{width}x{height}" for height, width in (mask.shape, size)]
            raise InputError(
                f"its mask {str(self.pairs[index][1])!r} has {shown[0]} pixels; allowed: the image's {shown[1]}"
            )
        return image, tv_tensors.Mask(torch.from_numpy(mask))

    def name(self, index: int) -> str:
        """Return the file of an image."""
        return str(self.pairs[index][0])

    @cached_property
    def _table(self) -> np.ndarray[Any, Any]:
        """The class of each id, IGNORED of those that have none."""
        table = np.full(256, IGNORED, np.uint8)
        for ident, number in (self.ids or {}).items():
            table[ident] = number
        return table

    def _numbers(self, path: Path) -> np.ndarray[Any, Any]:
        from PIL import Image

        try:
            with Image.open(path) as image:
                image.load()
                mode, values = image.mode, np.array(image)
        except Exception as error:  # Pillow's formats raise nearly anything of a damaged file
            raise InputError(f"its mask {str(path)!r} cannot be read ({reason(error)})") from error
        if values.ndim != 2 or values.dtype.kind not in "iub":
            raise InputError(
                f"its mask {str(path)!r} is of Pillow's mode {mode}; allowed: one channel of class numbers (L, P)"
            )
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > IGNORED:
            raise InputError(f"its mask {str(path)!r} holds {low if low < 0 else high}; allowed: 0 to {IGNORED}")
        numbers: np.ndarray[Any, Any] = values.astype(np.uint8)
        if self.ids is not None:
            numbers = self._table[numbers]
            return numbers
        beyond = numbers[(numbers >= self.classes) & (numbers != IGNORED)]
        if beyond.size:
            allowed = f"0 to {self.classes - 1}, and {IGNORED} for pixels that do not count"
            raise InputError(f"its mask {str(path)!r} holds the class {int(beyond.max())}; allowed: {allowed}")
        return numbers


def mask_samples(files: MaskFiles, key: str) -> Samples:
    """Return the pairs as samples; InputError, beginning with `key`, where files are absent or the first are wrong."""
    for pair in files.pairs:
        for path in pair:
            if not path.is_file():
                raise InputError(f"{key}: there is no file {str(path)!r}")
    for index in np.unique(np.linspace(0, len(files.pairs) - 1, _LOOKED_AT).astype(int)).tolist():
        try:
            files(index)
        except Exception as error:  # as when it is read later
            raise InputError(f"{key}: cannot read image {files.name(index)}: {reason(error)}") from error
    return Samples(files, range(len(files.pairs)), name=files.name)
