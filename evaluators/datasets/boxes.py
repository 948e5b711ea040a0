"""Boxes of annotation files, checked against their images; and readers of images with boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets.decoding import read
from evaluators.datasets.joint import boxed

Corners = tuple[float, float, float, float]
"""Left, top, right and bottom of a box in pixels, from the image's left upper corner on."""
Wrong = Literal["refuse", "drop"]
"""What becomes of boxes that are empty or reach out of their image."""
ADVICE = "data.wrong_boxes: drop leaves empty boxes out and cuts others at the image's edges"
_ROUNDED = 1.0  # pixels that a box may reach out of its image, as rounding in annotation tools makes it


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        boxes: of each object.
        labels: of each object, from 1.
        ignored: whether finding it or not counts in evaluation, as for crowds.
    """

    boxes: Sequence[Corners]
    labels: Sequence[int]
    ignored: Sequence[bool]


@dataclass(frozen=True)
class ImageWithObjects:
    """An image file with the size that its annotations are made for, and its objects."""

    path: str
    size: tuple[int, int]
    objects: Objects


def corners(where: str, box: Any, form: Literal["xywh", "xyxy"]) -> Corners:
    """Return the corners of a box as a file has it; InputError, beginning with `where`, for what is no box."""
    if isinstance(box, Sequence) and not isinstance(box, str) and len(box) == 4 and all(map(_finite, box)):
        left, top, right, bottom = map(float, box)
        return (left, top, left + right, top + bottom) if form == "xywh" else (left, top, right, bottom)
    parts = "[left, top, width, height]" if form == "xywh" else "[left, top, right, bottom]"
    raise InputError(f"{where} has the box {box!r}; allowed: {parts}, four finite numbers")


def within(where: str, box: Corners, size: tuple[int, int], wrong: Wrong = "refuse") -> Corners | None:
    """Return a box cut at the edges of an image of `size` (height, width); None where nothing of it is left.

    Raises:
        InputError: it is empty, or reaches out of the image by more than a pixel, and `wrong` says to refuse that.
    """
    left, top, right, bottom = box
    height, width = size
    if wrong == "refuse":
        shown = "({:g}, {:g}) to ({:g}, {:g})".format(*box)
        if right <= left or bottom <= top:
            raise InputError(
                f"{where} has a box from {shown}, which holds nothing; allowed: right of left, below top; {ADVICE}"
            )
        if min(left, top) < -_ROUNDED or right > width + _ROUNDED or bottom > height + _ROUNDED:
            raise InputError(
                f"{where} has a box from {shown}, outside its image; allowed: (0, 0) to ({width}, {height}); {ADVICE}"
            )
    cut = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    return cut if cut[2] > cut[0] and cut[3] > cut[1] else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def size_of(image: Any) -> tuple[int, int]:
    """Return height and width of what `evaluators.datasets.decoding.decode` returns."""
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    width, height = image.size
    return int(height), int(width)


@dataclass(frozen=True)
class BoxReader:
    """Reads image files with their boxes."""

    images: Sequence[ImageWithObjects]

    def __call__(self, index: int) -> tuple[Any, dict[str, Tensor]]:
        """Return an image, and its boxes, labels and `iscrowd`: 1 for those that are neither trained on nor counted."""
        entry = self.images[index]
        image = read(entry.path, entry.size)
        found = size_of(image)
        if found != entry.size:
            raise InputError(
                f"it has {found[1]}x{found[0]} pixels, its annotations are for {entry.size[1]}x{entry.size[0]}"
            )
        boxes = torch.tensor(entry.objects.boxes, dtype=torch.float32)
        labels, ignored = (
            torch.tensor(each, dtype=torch.int64) for each in (entry.objects.labels, entry.objects.ignored)
        )
        return image, boxed(boxes, labels, found, iscrowd=ignored)

    def name(self, index: int) -> str:
        """Return the file of an image."""
        return self.images[index].path
