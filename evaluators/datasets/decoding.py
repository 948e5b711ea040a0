"""Pixels of image files: every kind that Pillow opens, with the grey levels that the file holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".avif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2",
)  # fmt: skip
_BITS, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # tags of TIFF: bits per sample, what 0 means, how it was held
_ROUNDING = 1e-5  # how far floats may lie outside 0..1


def decode(image: Image, annotated: tuple[int, int] | None = None) -> Image | Tensor:
    """Return the upright first frame of an opened image: bytes as RGB, deeper grey as float32 (1, H, W) in 0..1.

    The orientation that a camera wrote into the file is applied, unless boxes or masks that go with the image are for a
    height and width, `annotated`, that only the pixels as they are stored have. Transparency is dropped as timm and
    torchvision do: the colours below it count. Grey levels of more than 8 bits keep their depth: whole numbers (16-bit
    PNG, TIFF, PGM) are taken as 0 (black) to 65535 (white; 4095 in a TIFF of 12 bits), floats (TIFF, PFM) as 0 to 1.
    Colours of 16 bits become bytes.

    Raises:
        InputError: levels outside those ranges.
        Exception: what Pillow raises of a damaged file, which is nearly anything.
    """
    from PIL import ImageOps

    image.load()
    height, width = image.height, image.width
    lying = image.getexif().get(_ORIENTATION, 1) >= 5  # upright it is as high as it is wide now
    upright = (width, height) if lying else (height, width)
    if annotated is None or annotated == upright or annotated != (height, width):
        ImageOps.exif_transpose(image, in_place=True)
    tiff = getattr(image, "tag_v2", {})
    inverted = tiff.get(_PHOTOMETRIC) == 0  # white is 0; Pillow minds that in images of bytes alone
    if image.mode == "F":
        return _grey(np.asarray(image, np.float32), 1, "floats", inverted)
    if image.mode == "I" or image.mode.startswith("I;16"):
        white = 4095 if tiff.get(_BITS) == (12,) else 65535
        return _grey(np.asarray(image, np.int64), white, "whole numbers", inverted)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way
    return image.convert("RGB")


def _grey(values: np.ndarray[Any, Any], white: int, kind: str, inverted: bool) -> Tensor:
    """Return levels (H, W) from 0 to `white` (or the other way round) as float32 (1, H, W) from 0 to 1."""
    low, high = values.min(), values.max()
    if not (low >= -_ROUNDING * white and high <= (1 + _ROUNDING) * white):  # NaN is refused, too
        raise InputError(f"it holds {kind} from {low:g} to {high:g}; allowed: 0 (black) to {white} (white)")
    grey = torch.from_numpy((values / white).astype(np.float32)).clamp_(0, 1).unsqueeze(0)
    return 1 - grey if inverted else grey


@dataclass(frozen=True)
class ToChannels:
    """The first step of a transform: what `decode` returned, with the model's channels (1 or 3).

    `bytes_only` names the key of the recipe that asks for something that works on bytes alone.
    """

    channels: int
    bytes_only: str | None = None

    def __call__(self, image: Image | Tensor) -> Image | Tensor:
        """Return an image of bytes, or a tensor (C, H, W)."""
        if not isinstance(image, Tensor):
            return image.convert("L") if self.channels == 1 else image
        if self.bytes_only:
            raise InputError(
                f"its grey levels have more than 8 bits, and {self.bytes_only} works on bytes; set it to null"
            )
        return image.expand(self.channels, -1, -1)


def read(file: str | BinaryIO, annotated: tuple[int, int] | None = None) -> Image | Tensor:
    """Open and `decode` an image file."""
    from PIL import Image

    with Image.open(file) as image:
        return decode(image, annotated)


def reason(error: Exception) -> str:
    """Return what a library says of a damaged file as one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
