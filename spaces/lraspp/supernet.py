"""LR-ASPP's supernet: the largest network of a space, which computes all others with its first channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.lraspp.network import LRASPP
from spaces.lraspp.rows import SegmenterRows
from spaces.mobilenet.sliced import conv, norm
from spaces.mobilenet.tables import BlockRow
from spaces.mobilenetv3.elastic import ElasticBottleneck
from spaces.mobilenetv3.supernet import ElasticSupernet, elastic_block, elastic_blocks, run_blocks

if TYPE_CHECKING:
    from spaces.lraspp.space import LRASPPSpace


class ElasticLRASPP(LRASPP):
    """The largest network, which computes the one in `active_rows` with its first channels, blocks and kernel centres.

    Its parameters are named as the stand-alone network's; the kernel matrices come on top.
    """

    def __init__(self, rows: SegmenterRows, task: Task, kernels: Sequence[int]) -> None:
        super().__init__(rows, task, partial(elastic_block, kernels=kernels))
        self.active_rows = rows

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the active network's logits (N, num_outputs, H, W)."""
        rows, head = self.active_rows, self.head
        x = low = self._enter(images)
        for number, (stage, chosen) in enumerate(zip(self.stages, rows.backbone.blocks, strict=True)):
            blocks, tapped = cast(nn.Sequential, stage), rows.low[1] + 1 if number == rows.low[0] else 0
            if tapped:
                x = low = run_blocks(blocks[:tapped], chosen[:tapped], x)
            x = run_blocks(blocks[tapped:], chosen[tapped:], x)
        high = self.last_activation(norm(self.last_norm, conv(self.last, x, rows.backbone.last_conv)))
        gate = conv(head.gate, high.mean((2, 3), keepdim=True), rows.features).sigmoid()
        gated = F.relu(norm(head.project_norm, conv(head.project, high, rows.features))) * gate
        gated = F.interpolate(gated, size=low.shape[-2:], mode="bilinear", align_corners=False)
        classes = head.high_classifier.out_channels
        logits = conv(head.high_classifier, gated, classes) + conv(head.low_classifier, low, classes)
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def blocks_of(self, rows: SegmenterRows) -> Iterator[tuple[str, ElasticBottleneck, BlockRow]]:
        """Yield the name, the module and the row of each elastic block that the network of `rows` uses."""
        for number, stage in enumerate(rows.backbone.blocks):
            yield from elastic_blocks(f"stages.{number}", cast(nn.Sequential, self.stages[number]), stage)


class LRASPPSupernet(ElasticSupernet):
    """One set of weights for every network of an LR-ASPP space; gives logits (N, classes, H, W)."""

    def __init__(self, space: LRASPPSpace, task: Task) -> None:
        super().__init__(space, task)
        self.shared = ElasticLRASPP(space.rows(space.largest()), task, space.config.backbone.kernels)
        self.activate(space.largest())
