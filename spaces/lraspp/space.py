"""LR-ASPP as a space: the backbone's decisions are those of `mobilenetv3`, the head's comes after them."""

from __future__ import annotations

from torch import nn

from evaluators.tasks import Task
from evaluators.tasks.segmentation import SegmentationConfig
from spaces.architecture import Architecture, Decision
from spaces.layers import Layer
from spaces.lraspp.config import LRASPPConfig
from spaces.lraspp.network import LRASPP
from spaces.lraspp.presets import PRESETS
from spaces.lraspp.rows import SegmenterRows, layers, segmenter_rows
from spaces.lraspp.supernet import LRASPPSupernet
from spaces.mobilenetv3.space import MobileNetV3Space
from spaces.registry import spaces
from spaces.space import Space
from spaces.supernet import Supernet

CLASSES, SIDE = 21, 520
"""Of torchvision's network: Pascal VOC's classes, the background among them, and its images in pixels a side."""
FEATURES = "head.features"


@spaces.register("lraspp")
class LRASPPSpace(Space):
    """Segmentation networks on MobileNets (Howard et al. 2019, "Searching for MobileNetV3", section 6.4).

    The head takes the last map, gated by its average, and a finer one.
    """

    Config = LRASPPConfig
    config: LRASPPConfig
    presets = PRESETS
    for_task = "segmentation"

    def __init__(self, config: LRASPPConfig) -> None:
        self.backbone = MobileNetV3Space(config.backbone)
        super().__init__(config)
        side = max(config.backbone.resolutions, default=SIDE)
        self.default_task = SegmentationConfig().bind(CLASSES, (3, side, side))
        self.rows(self.largest())  # a backbone with too few strides is refused here

    def _decisions(self) -> list[Decision]:
        several = len(self.config.features) > 1
        return [*self.backbone.decisions, *([Decision(FEATURES, self.config.features)] if several else [])]

    def rows(self, arch: Architecture) -> SegmenterRows:
        """Return the table of a checked `arch`; InputError where the backbone has too few strides."""
        features = arch.number(FEATURES) if FEATURES in arch else self.config.features[0]
        config = self.config
        return segmenter_rows(self.backbone.rows(arch), features, config.output_stride, config.half_tail)

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return LRASPP(self.rows(arch), task)

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        return layers(self.rows(arch), task)

    def _supernet(self, task: Task) -> Supernet:
        return LRASPPSupernet(self, task)

    def input_size(self, arch: Architecture, img_size: int | None = None) -> int:
        """Return the image side in pixels that `arch` has chosen; `img_size` where the resolution is not searched."""
        return self.backbone.input_size(arch, img_size or self.default_task.img_size)

    def largest(self) -> Architecture:
        """Return the architecture whose weights contain those of all others."""
        return self.check({each.name: max(each.choices) for each in self.decisions}, drop_untaken=True)

    def _canonical(self, arch: Architecture) -> Architecture:
        """Return `arch` with widths and expansions that round to the same channels replaced by the smallest."""
        own = {decision.name for decision in self.backbone.decisions}
        backbone = Architecture({name: choice for name, choice in arch.items() if name in own})
        return Architecture(dict(arch) | dict(self.backbone.canonical(backbone)))
