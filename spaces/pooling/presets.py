"""Published placements."""

from __future__ import annotations

from spaces.space import Preset

_LOST = "published with a last segment of 1, whose halving the code lost: this is the network that was trained"

PRESETS = {
    "resnet20-default": Preset("ResNet-20 as designed, CIFAR-10: 90.52 % trained alone", {}, [4, 3, 3]),
    "resnet20-best": Preset("the best of all 36 trained alone, CIFAR-10: 92.01 %", {}, [7, 1, 2]),
    "resnet20-balanced": Preset("found by a balanced mixture of four supernets, CIFAR-10: 91.55 %", {}, [5, 3, 2]),
    "resnet20-spos": Preset("found by one supernet on uniformly drawn placements, CIFAR-10: 90.61 %", {}, [3, 3, 4]),
    "resnet20-supernet": Preset(
        "the 36 placements with the normalisation of the published supernets", {"norm": "batch_statistics"}
    ),
    "resnet18-default": Preset("ResNet-18 as designed, CIFAR-10: 90.45 %", {"backbone": "resnet18"}, [3, 2, 2, 2]),
    "resnet50-default": Preset("ResNet-50 as designed, CIFAR-100: 77.57 %", {"backbone": "resnet50"}, [3, 4, 6, 3]),
    "food101-default": Preset(
        "ResNet-50 as designed, Food-101 at 224 px: 84.00 %", {"backbone": "resnet50_224"}, [3, 4, 6, 3]
    ),
    "food101-balanced4": Preset(
        "found by four supernets, Food-101: 84.35 %", {"backbone": "resnet50_224"}, [8, 3, 3, 2]
    ),
    "food101-balanced8": Preset(
        f"found by eight supernets, Food-101: 84.73 %; {_LOST}", {"backbone": "resnet50_224", "halvings": 2}, [9, 4, 3]
    ),
}
