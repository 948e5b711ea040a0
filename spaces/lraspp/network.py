"""LR-ASPP, the segmentation head of MobileNetV3 (Howard et al. 2019, section 6.4 and figure 10), on its backbone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.lraspp.rows import SegmenterRows
from spaces.mobilenet.blocks import block, initialise
from spaces.mobilenet.network import MakeBlock, Trunk


class LRASPPHead(nn.Module):
    """Logits from a gated high-level map and a finer low-level map; the gate comes from the global average."""

    def __init__(self, high_channels: int, low_channels: int, features: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(high_channels, features, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(features)
        self.gate = nn.Conv2d(high_channels, features, 1, bias=False)
        self.high_classifier = nn.Conv2d(features, num_classes, 1)
        self.low_classifier = nn.Conv2d(low_channels, num_classes, 1)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Map (N, high_channels, h, w) and (N, low_channels, 2h, 2w) to (N, classes, 2h, 2w)."""
        gate = self.gate(high.mean((2, 3), keepdim=True)).sigmoid()
        gated = F.relu(self.project_norm(self.project(high))) * gate
        gated = F.interpolate(gated, size=low.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.high_classifier(gated) + self.low_classifier(low)
        return logits


class LRASPP(Trunk):
    """A segmentation network. Its trunk's layers are called as in a classifier, whose checkpoint it can start from."""

    def __init__(self, rows: SegmenterRows, task: Task, make: MakeBlock = block) -> None:
        super().__init__(rows.backbone, task.in_chans, make)
        self.low = rows.low
        self.head = LRASPPHead(rows.backbone.last_conv, rows.low_channels, rows.features, task.num_outputs)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_outputs, H, W)."""
        high, low = self.tapped(images, self.low)
        return F.interpolate(self.head(high, low), size=images.shape[-2:], mode="bilinear", align_corners=False)
