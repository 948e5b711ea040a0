"""Named points: the published networks, their search paths, and small fabrics."""

from __future__ import annotations

from spaces.space import Preset

_RETRAIN = {"version": "retrain"}
_T0 = [[1], [1], [1, 1, 1, 0, 1], [0, 0, 0, 1, 0, 0, 0, 0, 0]]
_RESNET50 = [[1] * 3, [1] * 4, [1] * 6, [1] * 3]

PRESETS = {
    "bossnas": Preset("the supernet as published: blocks of 4, 3, 2 and 2 scales", {"block_scales": (4, 3, 2, 2)}),
    "bossnet-t0": Preset("BossNet-T0, 80.8 % top-1 on ImageNet", {**_RETRAIN, "se": True}, _T0),
    "bossnet-t0-nose": Preset("BossNet-T0 without squeeze-and-excitation, 80.5 %", _RETRAIN, _T0),
    "bossnet-t1": Preset("BossNet-T1: T0 on 14x14 maps, 81.9 %", {**_RETRAIN, "se": True, "last_stride": 1}, _T0),
    "bossnet-t0-path": Preset("BossNet-T0 as found, with the operations of the search", {}, "5433 3230 0010 0000"),
    "dna-t": Preset("DNA-T, 80.3 %", _RETRAIN, [[1], [1] * 3, [1, 0, 1, 1, 1, 1, 0, 1], [0, 1, 1, 1]]),
    "r50-t": Preset("ResNet-50 of ResConv, 78.2 %", _RETRAIN, _RESNET50),
    "bot50-t": Preset("BoTNet-50: ResNet-50 with attention in the last stage", _RETRAIN, [*_RESNET50[:3], [0] * 3]),
    "cifar": Preset(
        "images of 32x32: maps of 32, 16, 8 and 4, attention at 8 and 4",
        {"layers": 12, "channels": (64, 128, 256, 512), "head_dim": 32, "stem": "cifar", "stem_channels": 32},
    ),
    "tiny": Preset(
        "trains in seconds: maps of 32, 16 and 8, four layers in two blocks",
        {
            "layers": 4,
            "blocks": 2,
            "channels": (16, 32, 64),
            "head_dim": 8,
            "stem": "cifar",
            "stem_channels": 16,
        },
    ),
}
