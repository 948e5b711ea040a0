"""LeYOLO's published sizes, and small detectors for small images."""

from __future__ import annotations

from typing import Any

from spaces.architecture import Choice
from spaces.leyolo.rows import FINE, PARTS
from spaces.mobilenetv3.presets import table
from spaces.space import Preset

_PUBLISHED_EXPANDS = (3, 6, 9)


def _architecture(extra: int) -> dict[str, Choice]:
    """Return the published architecture with `extra` blocks in every stage and part of the pyramid."""
    backbone = table(
        [(3, 6), *[(3, 3)] * (1 + extra)],
        [(5, 3), *[(5, 3)] * (4 + extra)],
        [(5, 9), *[(5, 6)] * (3 + extra)],
    )
    neck: dict[str, Choice] = {}
    for part, kernel in zip(PARTS, (5, 3, 5, 5), strict=True):
        neck |= {f"{part}.depth": 3 + extra, f"{part}.kernel": kernel, f"{part}.expand": 2}
    return backbone | neck


def _options(width: float, depth: int, head_width: int | None = None) -> dict[str, Any]:
    return {
        "backbone": {"width": width, "expands": _PUBLISHED_EXPANDS},
        "neck_depths": tuple(range(1 if head_width is None else 2, depth + 1)),
        "head_width": head_width,
    }


DIGITS: dict[str, Any] = {
    "backbone": {
        "skeleton": "leyolo", "width": 0.75, "strides": (2, 1, 2, 2, 2), "kernels": (3, 5), "expands": (2, 4, 6),
        "depths": (1, 2),
    },
    "neck_depths": (1, 2), "neck_expands": (1, 2), "bins": 8,
}  # fmt: skip
"""For images of 64 to 96 pixels: strides of 4, 8 and 16, three quarters of the width, boxes of up to 14 strides."""

PRESETS = {
    "leyolo": Preset("LeYOLO's space: backbone, pyramid and heads at the width of Nano"),
    "nano": Preset("LeYOLO-Nano: 640 pixels, or 320 and 480", _options(1.0, 3), _architecture(0)),
    "small": Preset("LeYOLO-Small: 640 pixels, or 480", _options(1.33, 3), _architecture(0)),
    "medium": Preset("LeYOLO-Medium: 640 pixels", _options(1.33, 4, 64), _architecture(1)),
    "large": Preset(
        "LeYOLO-Large: Medium at 768 pixels",
        _options(1.33, 4, 64) | {"backbone": {"width": 1.33, "expands": _PUBLISHED_EXPANDS, "resolutions": (768,)}},
        _architecture(1),
    ),
    "digits": Preset("small detectors for images of 64 to 96 pixels: strides of 4, 8 and 16", DIGITS),
    "digits-small": Preset(
        "one of them, of two blocks a stage and one a part of the pyramid",
        DIGITS,
        table([(3, 4)] * 2, [(3, 4)] * 2, [(3, 4)] * 2)
        | {f"{part}.{word}": choice for part in PARTS for word, choice in (("depth", 1), ("kernel", 3))}
        | {f"{part}.expand": 2 for part in PARTS if part != FINE},
    ),
}
"""Presets by name."""
