"""A detector in torchvision's convention that takes milliseconds: FCOS on one map of a few convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

SIDE = 32


class Backbone(nn.Sequential):
    """Images (N, 3, H, W) to maps (N, 32, H / 4, W / 4)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for into, out, stride in ((3, 16, 2), (16, 24, 2), (24, 32, 1)):
            layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        super().__init__(*layers)
        self.out_channels = 32


def make(num_classes: int = 4, img_size: int = SIDE, **options: Any) -> FCOS:
    """Return the detector in evaluation mode, whose scores lie apart: with random weights most are the same."""
    sizes = AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),))
    settings = {"score_thresh": 0.05, "detections_per_img": 20, "min_size": img_size, "max_size": img_size} | options
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    model = FCOS(Backbone(), num_classes, anchor_generator=sizes, **statistics, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
            elif "cls_logits" in name:
                parameter.zero_()[0] = -20  # the background is nothing to find
    return model.eval()


def images(count: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """Return images (N, 3, H, W) with areas of several colours."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    return nn.functional.interpolate(coarse, (side, side), mode="bilinear").clamp(0, 1)
