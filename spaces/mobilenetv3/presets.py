"""Published networks as points of the elastic space, and option sets worth a name."""

from __future__ import annotations

from collections.abc import Sequence

from spaces.architecture import Choice
from spaces.space import Preset


def table(*stages: Sequence[tuple[int, float]]) -> dict[str, Choice]:
    """Return the choices of a published table: (kernel, expansion ratio) of each block of each searched stage."""
    found: dict[str, Choice] = {}
    for stage, blocks in enumerate(stages, 2):
        found[f"stage{stage}.depth"] = len(blocks)
        for layer, (kernel, expand) in enumerate(blocks, 1):
            found[f"stage{stage}.layer{layer}.kernel"] = kernel
            found[f"stage{stage}.layer{layer}.expand"] = expand
    return found


PRESETS = {
    "mobilenetv3-large": Preset(
        "MobileNetV3-Large (Howard et al. 2019, table 1)",
        {"skeleton": "large", "dropout": 0.2},
        table(
            [(3, 4), (3, 3)],
            [(5, 3), (5, 3), (5, 3)],
            [(3, 6), (3, 2.5), (3, 2.3), (3, 2.3)],
            [(3, 6), (3, 6)],
            [(5, 6), (5, 6), (5, 6)],
        ),
    ),
    "mobilenetv3-small": Preset(
        "MobileNetV3-Small (Howard et al. 2019, table 2)",
        {"skeleton": "small", "dropout": 0.2},
        table(
            [(3, 4.5), (3, 3.67)],
            [(5, 4), (5, 6), (5, 6)],
            [(5, 3), (5, 3)],
            [(5, 6), (5, 6), (5, 6)],
        ),
    ),
    "mobilenetv2": Preset(
        "MobileNetV2 (Sandler et al. 2018, table 2)",
        {"skeleton": "v2", "dropout": 0.2},
        table(*([(3, 6)] * blocks for blocks in (2, 3, 4, 3, 3, 1))),
    ),
    "ofa": Preset("Once-for-All's space (Cai et al. 2020): 2.2e19 networks"),
    "ofa-largest": Preset("Once-for-All's largest network", code={"ks": 7, "e": 6, "d": 4}),
    "ofa-smallest": Preset("Once-for-All's smallest network", code={"ks": 3, "e": 3, "d": 2}),
    "ofa-cifar": Preset("Once-for-All's space for images of 32 pixels", {"dataset": "cifar"}),
    "tiny": Preset(
        "74,088 small networks for images of 32 pixels; one trains in seconds on a CPU",
        {"skeleton": "tiny", "dataset": "cifar", "kernels": (3, 5), "strides": (2, 1, 1, 2, 2)},
    ),
}
"""Presets by name."""
