"""The space: BossNAS, "Exploring Hybrid CNN-transformers with Block-wisely Self-supervised Neural Architecture Search".

The head (global average, linear) is not part of the published search, which trains blocks without labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.drawing import draw_fabric
from spaces.hytra.codes import read_codes, write_codes, write_stages
from spaces.hytra.config import HyTraConfig
from spaces.hytra.costs import describe
from spaces.hytra.fabric import Fabric, Operation
from spaces.hytra.layer_plans import LayerPlan, make_plan, stem_size
from spaces.hytra.network import HyTraNet
from spaces.hytra.presets import PRESETS
from spaces.hytra.supernet import HyTraSupernet
from spaces.layers import Layer, halved
from spaces.registry import spaces
from spaces.space import Space, task_of


@spaces.register("hytra")
class HyTra(Space):
    """Where a chain of residual layers halves its map, and which of them attend."""

    Config = HyTraConfig
    presets = PRESETS
    config: HyTraConfig

    def __init__(self, config: HyTraConfig) -> None:
        large = config.stem == "imagenet"
        self.default_task = task_of() if large else task_of(num_outputs=10, img_size=32)
        scales = len(config.channels)
        self.fabric = Fabric(
            config.block_scales or (scales,) * config.blocks,
            config.layers,
            config.attention_scales,
            _sizes(config, self.default_task.img_size),
        )
        super().__init__(config)

    def _decisions(self) -> list[Decision]:
        return list(self.fabric.decisions())

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return HyTraNet(self.config, self._plan(arch, task), task)

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        return describe(self.config, self._plan(arch, task), task)

    def _supernet(self, task: Task) -> HyTraSupernet:
        if self.config.version != "search":
            raise InputError("space hytra has a supernet in version: search only; got version: retrain")
        return HyTraSupernet(self, task)

    def _plan(self, arch: Architecture, task: Task) -> list[LayerPlan]:
        return make_plan(self.config, self.path(arch), task.img_size)

    def path(self, arch: Mapping[str, Choice]) -> list[tuple[int, Operation]]:
        """Return scale and operation of every layer of a legal `arch`; scale 0 is the smallest map."""
        scales = self.fabric.scales(arch, self.fabric.layers)
        attention = [arch.get(f"layer{layer}.operation") == "attention" for layer in range(len(scales))]
        return [(scale, "attention" if attends else "conv") for scale, attends in zip(scales, attention, strict=True)]

    def codes(self, arch: Mapping[str, Choice]) -> list[int]:
        """Return the published code of every layer of a legal `arch`."""
        return list(self.fabric.path(arch, self.fabric.layers))

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of a path or of stage-wise operations.

        A path is a string of digits ("5433 3230 0010 0000"; also with other separators, or as a list of strings) or a
        list of integers. Stage-wise operations are one list per scale, largest map first, of 1 (ResConv) and
        0 (ResAtt): [[1], [1], [1, 1, 1, 0, 1], [0, 0, 0, 1, 0, 0, 0, 0, 0]].
        """
        return read_codes(code, self.fabric)

    def to_code(self, arch: Architecture) -> str:
        """Return the path of a legal `arch` as digits, its blocks apart."""
        return write_codes(self.codes(arch), self.fabric)

    def to_stages(self, arch: Architecture) -> list[list[int]]:
        """Return the operations of a legal `arch` stage by stage, as `from_code` reads them."""
        return write_stages(self.codes(arch), self.fabric)

    def block_paths(self, largest_scale: int, searched: bool = False) -> list[tuple[int, ...]]:
        """Return the paths through one block after a block that ends on `largest_scale`; see `Fabric.block_paths`."""
        scales = len(self.config.channels)
        if not 0 <= largest_scale < scales:
            raise InputError(f"scales of this space are 0 to {scales - 1}; got {largest_scale}")
        return self.fabric.block_paths(largest_scale, searched)

    def draw(self, arch: Architecture | None = None, img_size: int | None = None) -> str:
        """Return an SVG picture of the fabric, with the path of `arch` where there is one."""
        sizes = _sizes(self.config, img_size or self.default_task.img_size)[::-1]
        layers = self.config.layers
        rows = [f"{size} x {size}" for size in sizes]
        words = {"conv": "ResConv", "attention": "ResAtt"}
        options: dict[tuple[int, int], tuple[str, ...]] = {}
        for row in range(len(rows)):
            scale = len(rows) - 1 - row
            offered = ("ResConv", "ResAtt") if scale < self.fabric.attention else ("ResConv",)
            options |= {(row, at): offered for at in range(layers) if scale <= self.fabric.largest[at]}
        path = None if arch is None else [(len(rows) - 1 - scale, words[op]) for scale, op in self.path(arch)]
        title = "HyTra" if arch is None else f"HyTra {self.to_code(arch)}"
        subtitle = f"{self.count():,} paths of {layers} layers; channels {', '.join(map(str, self.config.channels))}"
        groups = (self.fabric.block_layers,) * self.config.blocks
        return draw_fabric(title, subtitle, rows, layers, options, path, groups)


def _sizes(config: HyTraConfig, img_size: int) -> tuple[int, ...]:
    """Return the side of the map of each scale in pixels, smallest first."""
    sizes = [stem_size(config, img_size)]
    for _ in config.channels[1:-1]:
        sizes.append(halved(sizes[-1]))
    sizes.append(halved(sizes[-1]) if config.last_stride == 2 else sizes[-1])
    return tuple(reversed(sizes))
