"""The released NASNet-A networks, and the space at sizes that are searched."""

from __future__ import annotations

from spaces.nasnet.code import encode
from spaces.nasnet.genotype import BlockGenotype as Block
from spaces.nasnet.genotype import CellGenotype, Genotype
from spaces.space import Preset

_SEP3, _SEP5, _SEP7 = "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7"
_AVG, _MAX, _ID = "avg_pool_3x3", "max_pool_3x3", "identity"

NASNET_A = Genotype(
    normal=CellGenotype(
        blocks=(
            Block(0, 1, _SEP5, _SEP3),
            Block(1, 1, _SEP5, _SEP3),
            Block(0, 1, _AVG, _ID),
            Block(1, 1, _AVG, _AVG),
            Block(0, 0, _SEP3, _ID),
        ),
        concat=(1, 2, 3, 4, 5, 6),
    ),
    reduction=CellGenotype(
        blocks=(
            Block(0, 1, _SEP5, _SEP7),
            Block(0, 1, _MAX, _SEP7),
            Block(0, 1, _AVG, _SEP5),
            Block(3, 2, _ID, _AVG),
            Block(2, 0, _SEP3, _MAX),
        ),
        concat=(3, 4, 5, 6),
    ),
)
"""The released cells; what they concatenate is not what the paper's rule of loose ends gives."""

_CODE = encode(NASNET_A.choices())
_LISTS = {"concat": {"normal": list(NASNET_A.normal.concat), "reduction": list(NASNET_A.reduction.concat)}}
_IMAGENET = {**_LISTS, "stem": "imagenet", "dropout": 0.5, "norm_eps": 1e-3}

PRESETS = {
    "nasnet-a-cifar": Preset(
        "NASNet-A (6 @ 768) for CIFAR-10", {**_LISTS, "cells_per_stage": 6, "drop_path_keep": 0.6}, _CODE
    ),
    "nasnet-a-mobile": Preset(
        "NASNet-A (4 @ 1056) for ImageNet at 224 pixels", {**_IMAGENET, "cells_per_stage": 4, "filters": 44}, _CODE
    ),
    "nasnet-a-large": Preset(
        "NASNet-A (6 @ 4032) for ImageNet at 331 pixels",
        {
            **_IMAGENET, "cells_per_stage": 6, "filters": 168, "stem_channels": 96, "wiring": "large",
            "drop_path_keep": 0.7, "img_size": 331,
        },
        _CODE,
    ),
    "proxy": Preset("NASNet-A at the size that the paper searched at (N = 2)", _LISTS, _CODE),
    "digits": Preset(
        "the space, small enough to be searched on 32-pixel digits in minutes", {"cells_per_stage": 1, "filters": 8}
    ),
}  # fmt: skip
