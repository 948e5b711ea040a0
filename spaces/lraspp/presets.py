"""Published LR-ASPP networks, and small ones for small images."""

from __future__ import annotations

from typing import Any

from spaces.mobilenetv3.presets import PRESETS as BACKBONES
from spaces.mobilenetv3.presets import table
from spaces.space import Preset


def _on(backbone: str, text: str, **options: Any) -> Preset:
    """Return the published network on a preset of the space mobilenetv3."""
    known = BACKBONES[backbone]
    own = {name: value for name, value in known.options.items() if name != "dropout"}
    return Preset(text, {"backbone": own, "features": (128,), **options}, known.code)


DIGITS: dict[str, Any] = {
    "backbone": {
        "skeleton": "tiny", "kernels": (3, 5), "expands": (2, 4, 6), "depths": (1, 2), "strides": (2, 1, 2, 2, 2),
        "width": 2.0,
    },
    "features": (32, 64),
    "output_stride": 8,
}  # fmt: skip
"""For images of 64 pixels: maps of 16 and 8 pixels a side."""

PRESETS = {
    "lraspp": Preset("LR-ASPP on MobileNetV3-Large's stages: kernels, expansions, depths, and the head's channels"),
    "large": _on("mobilenetv3-large", "LR-ASPP on MobileNetV3-Large, torchvision's lraspp_mobilenet_v3_large"),
    "large-rf2": _on(
        "mobilenetv3-large", "LR-ASPP on MobileNetV3-Large, last stage of half the width (RF2)", half_tail=True
    ),
    "small": _on("mobilenetv3-small", "LR-ASPP on MobileNetV3-Small"),
    "small-rf2": _on(
        "mobilenetv3-small", "LR-ASPP on MobileNetV3-Small, last stage of half the width (RF2)", half_tail=True
    ),
    "digits": Preset("small networks for images of 64 pixels", DIGITS),
    "digits-small": Preset(
        "one of them, of two blocks a stage",
        DIGITS,
        table(*([(3, 4)] * 2 for _ in range(3))) | {"head.features": 64},
    ),
}
"""Presets by name."""
