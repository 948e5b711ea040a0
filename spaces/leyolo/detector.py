"""A LeYOLO detector as a module, in torchvision's convention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.leyolo.found import found_in
from spaces.leyolo.loss import detection_losses
from spaces.leyolo.points import anchor_points, boxes_around, expected_distances
from spaces.leyolo.rows import PARTS, DetectorRows
from spaces.mobilenet.blocks import activation, block, initialise
from spaces.mobilenet.network import MakeBlock, Stages, stage_of
from spaces.mobilenet.tables import Activation


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size of the map up to its stride, batch norm, activation."""

    def __init__(self, into: int, out: int, kernel: int, act: Activation, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out), activation(act))


class PoolingPyramid(nn.Module):
    """SPPF: maxima over windows of 5, 9 and 13 pixels beside the map itself."""

    def __init__(self, into: int, out: int, act: Activation) -> None:
        super().__init__()
        self.reduce = ConvNorm(into, out // 2, 1, act)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.join = ConvNorm(4 * (out // 2), out, 1, act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, into, H, W) to (N, out, H, W)."""
        maps = [self.reduce(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        joined: Tensor = self.join(torch.cat(maps, 1))
        return joined


class Neck(nn.Module):
    """The pyramid: once from coarse to fine, once back, concatenating maps."""

    def __init__(self, rows: DetectorRows, make: MakeBlock) -> None:
        super().__init__()
        act = rows.backbone.stem_activation
        topdown, fine, middle, _ = rows.outs
        self.pooled = PoolingPyramid(rows.tapped[2], rows.pooled, act)
        self.parts = nn.ModuleDict(
            {part: stage_of(into, blocks, make) for part, blocks, into in zip(PARTS, rows.parts, rows.ins, strict=True)}
        )
        self.down_middle = ConvNorm(fine, topdown, 3, act, 2)
        self.down_coarse = ConvNorm(middle, rows.pooled, 3, act, 2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map the backbone's three maps, the finest first, to those that the heads take."""
        fine, middle, coarse = maps
        pooled = self.pooled(coarse)
        topdown = self.part(PARTS[0], _enlarged(pooled, middle), middle)
        finest = self.part(PARTS[1], _enlarged(topdown, fine), fine)
        middle = self.part(PARTS[2], self.down_middle(finest), topdown)
        return [finest, middle, self.part(PARTS[3], self.down_coarse(middle), pooled)]

    def part(self, name: str, *maps: Tensor) -> Tensor:
        """Return what a part makes of maps (N, C, H, W) of one size."""
        found: Tensor = self.parts[name](torch.cat(maps, 1))
        return found


class Head(nn.Module):
    """One level's branch for the sides of boxes, or for classes: 1x1, twice depthwise 3x3, 1x1."""

    def __init__(self, into: int, width: int, out: int, act: Activation) -> None:
        super().__init__()
        self.enter = ConvNorm(into, width, 1, act)
        self.mix = nn.Sequential(*(ConvNorm(width, width, 3, act, groups=width) for _ in range(2)))
        self.leave = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, into, H, W) to (N, out, H W)."""
        found: Tensor = self.leave(self.mix(self.enter(x)))
        return found.flatten(2)


class Detector(nn.Module):
    """Backbone, pyramid and decoupled heads.

    In training, `model(images, targets)` returns a dictionary of losses; in evaluation, `model(images)` returns a list
    of dictionaries with boxes (M, 4) in pixels, labels (M,) from 1 and scores (M,), the best first.
    """

    def __init__(
        self, rows: DetectorRows, task: Task, threshold: float, nms_iou: float, detections: int, make: MakeBlock = block
    ) -> None:
        super().__init__()
        self.num_classes = task.num_outputs
        self.bins, self.strides = rows.bins, rows.strides
        self.taps = rows.taps
        self.threshold, self.nms_iou, self.detections = threshold, nms_iou, detections
        act, real = rows.backbone.stem_activation, task.num_outputs - 1
        self.backbone = Stages(rows.backbone, task.in_chans, make)
        self.neck = Neck(rows, make)
        side_width, class_width = rows.head_widths(real)
        self.side_heads = nn.ModuleList(Head(out, side_width, 4 * rows.bins, act) for out in rows.outs[1:])
        self.class_heads = nn.ModuleList(Head(out, class_width, real, act) for out in rows.outs[1:])
        initialise(self)
        self._settle(task.img_size, real)

    def _settle(self, side: int, classes: int) -> None:
        """Let every anchor point begin with a box around it of about six strides a side, and with a small score.

        Scores are as if an image of `side` pixels held five objects on every level, as in YOLOv8. There every distance
        begins as likely as any other, so that boxes span 15 strides, more than the image on coarse maps.
        """
        near = -0.3 * torch.arange(self.bins, dtype=torch.float32)
        for level, stride in enumerate(self.strides):
            likely = math.log(5 / classes / (side / stride) ** 2)
            for heads, bias in ((self.side_heads, near.repeat(4)), (self.class_heads, torch.full((classes,), likely))):
                leave = heads.get_submodule(f"{level}.leave")
                assert isinstance(leave, nn.Conv2d) and leave.bias is not None
                nn.init.normal_(leave.weight, std=0.01)
                with torch.no_grad():
                    leave.bias.copy_(bias)

    def forward(self, images: Tensor | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None) -> Any:
        """Return losses in training, what is found in evaluation.

        Args:
            images: (N, C, H, W), or N images (C, H, W), which smaller ones are padded to the largest of.
            targets: boxes (M, 4) and labels (M,) from 1 of each image.
        """
        batch = images if isinstance(images, Tensor) else _padded(images)
        sides, classes, points, strides = self._predicted(batch)
        if self.training:
            if targets is None:
                raise ValueError("in training a detector needs the targets of the images")
            return detection_losses(sides, classes, points, strides, targets)
        boxes = boxes_around(points, expected_distances(sides, self.bins) * strides[:, None])
        return [
            found_in(some, scores, image.shape[-2:], self.threshold, self.nms_iou, self.detections)
            for some, scores, image in zip(boxes, classes.sigmoid(), images, strict=True)
        ]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Return what is predicted at every anchor point, before anything is left out.

        boxes (N, A, 4) in pixels, which may reach beyond the image, and logits (N, A, classes), the background none of
        them. Scores are their sigmoids.
        """
        sides, classes, points, strides = self._predicted(images)
        boxes = boxes_around(points, expected_distances(sides, self.bins) * strides[:, None])
        return {"boxes": boxes, "logits": classes}

    def _predicted(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits of sides (N, A, 4 bins) and of classes (N, A, K), anchor points (A, 2), strides (A,)."""
        maps = self.maps(images)
        sides = torch.cat([head(x) for head, x in zip(self.side_heads, maps, strict=True)], 2).transpose(1, 2)
        classes = torch.cat([head(x) for head, x in zip(self.class_heads, maps, strict=True)], 2).transpose(1, 2)
        points, strides = anchor_points([(x.shape[2], x.shape[3]) for x in maps], self.strides, classes)
        return sides, classes, points, strides

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps that the heads take, for images (N, C, H, W)."""
        found: list[Tensor] = self.neck(self.backbone.maps(images, self.taps))
        return found


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def _padded(images: Sequence[Tensor]) -> Tensor:
    """Return images (C, H, W) as (N, C, H, W), filled up below and on the right with zeros."""
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    return torch.stack([F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images])
