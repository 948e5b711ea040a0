"""LeYOLO as a space: the backbone's decisions are those of `mobilenetv3`, the pyramid's come after them."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from compress.core.errors import InputError
from evaluators.tasks import Task
from evaluators.tasks.detection import DetectionConfig
from spaces.architecture import Architecture, Choice, Decision, where
from spaces.layers import Layer
from spaces.leyolo.config import LeYOLOConfig
from spaces.leyolo.detector import Detector
from spaces.leyolo.presets import PRESETS
from spaces.leyolo.rows import FINE, LEVEL_OF, LEVELS, PARTS, DetectorRows, layers, taps_of
from spaces.mobilenet.tables import BlockRow
from spaces.mobilenetv3.space import MobileNetV3Space
from spaces.registry import spaces
from spaces.space import Space

CLASSES = 81
"""Of COCO, the background among them."""


@spaces.register("leyolo")
class LeYOLOSpace(Space):
    """Small detectors of inverted bottlenecks (Hollard et al. 2024, "LeYOLO", and the authors' code).

    Their pyramid goes once from coarse to fine and once back, concatenating maps; nothing is expanded where the finest
    maps come together. One width multiplier and the size of the images scale them: 8 ceil(min(c, 576) w / 8) channels.
    """

    Config = LeYOLOConfig
    config: LeYOLOConfig
    presets = PRESETS
    for_task = "detection"

    def __init__(self, config: LeYOLOConfig) -> None:
        self.backbone = MobileNetV3Space(config.backbone)
        super().__init__(config)
        sizes = config.backbone.resolutions
        self.default_task = DetectionConfig().bind(CLASSES, (3, *[max(sizes, default=640)] * 2))
        if config.head_width is not None and min(config.neck_depths) < 2:
            raise InputError("option head_width: needs neck_depths of 2 and more, since it sets each part's last block")
        self.rows(next(iter(self)))  # a backbone with too few strides is refused here

    def _decisions(self) -> list[Decision]:
        found, depths = list(self.backbone.decisions), self.config.neck_depths
        for part in PARTS:
            found.append(Decision(f"{part}.depth", depths))
            found.append(Decision(f"{part}.kernel", self.config.neck_kernels))
            fixed = (part == FINE) + (part != PARTS[0] and self.config.head_width is not None)
            deep = [depth for depth in depths if depth > fixed]
            when = where(f"{part}.depth", *deep) if len(deep) < len(depths) else None
            if deep:
                found.append(Decision(f"{part}.expand", self.config.neck_expands, when))
        return found

    def rows(self, arch: Architecture) -> DetectorRows:
        """Return the table of a checked `arch`; InputError where the backbone has too few strides."""
        backbone = self.backbone.rows(arch)
        taps, strides = taps_of(backbone)
        if len(taps) < LEVELS:
            raise InputError(
                f"option backbone.strides: the pyramid takes maps of three strides; these have {len(taps)}: "
                f"{', '.join(map(str, strides))}"
            )
        fine, middle, coarse = taps[-LEVELS:]
        finest = backbone.blocks[fine][-1].out
        return DetectorRows(
            backbone=backbone,
            taps=(fine, middle, coarse),
            strides=(strides[-3], strides[-2], strides[-1]),
            pooled=self.backbone.channels(self.config.neck_widths[2]),
            parts=tuple(
                tuple(self._blocks(arch, part, level, finest)) for part, level in zip(PARTS, LEVEL_OF, strict=True)
            ),
            bins=self.config.bins,
        )

    def _blocks(self, arch: Architecture, part: str, level: int, finest: int) -> list[BlockRow]:
        """Return the blocks of a part of the pyramid that hands on maps of `level`."""
        width, last = self.config.neck_widths[level], self.config.head_width
        middle = self._hidden(level, arch.get(f"{part}.expand", self.config.neck_expands[0]))
        kernel, out = arch.number(f"{part}.kernel"), self.backbone.channels(width)
        row = BlockRow(kernel, middle, out, activation=self.backbone.skeleton.activation)
        found = [row] * arch.number(f"{part}.depth")
        if part == FINE:
            found[0] = replace(row, hidden=self.backbone.channels(self.config.neck_widths[1]) + finest)
        if last is not None and part != PARTS[0]:
            hidden, out = self.backbone.channels(2 * last), self.backbone.channels(last)
            found[-1] = replace(row, kernel=5, hidden=hidden, out=out)
        return found

    def _hidden(self, level: int, expand: Choice) -> int:
        return self.backbone.channels(self.config.neck_widths[level] * float(expand))

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        config = self.config
        return Detector(self.rows(arch), task, config.score_threshold, config.nms_iou, config.detections)

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        return layers(self.rows(arch), task)

    def input_size(self, arch: Architecture, img_size: int | None = None) -> int:
        """Return the image side in pixels that `arch` has chosen; `img_size` where the resolution is not searched."""
        return self.backbone.input_size(arch, img_size or self.default_task.img_size)

    def _canonical(self, arch: Architecture) -> Architecture:
        """Return `arch` with widths and expansions that round to the same channels replaced by the smallest."""
        own = {decision.name for decision in self.backbone.decisions}
        backbone = Architecture({name: choice for name, choice in arch.items() if name in own})
        found = dict(arch) | dict(self.backbone.canonical(backbone))
        for part, level in zip(PARTS, LEVEL_OF, strict=True):
            if f"{part}.expand" in found:
                hidden = self._hidden(level, found[f"{part}.expand"])
                found[f"{part}.expand"] = next(e for e in self.config.neck_expands if self._hidden(level, e) == hidden)
        return Architecture(found)
