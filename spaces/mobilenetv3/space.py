"""The elastic MobileNetV3 space: depth and width of each stage, kernel and expansion of each block, resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision, where
from spaces.layers import Layer
from spaces.mobilenet.network import MobileNet
from spaces.mobilenet.tables import BlockRow, NetworkRows, layers, round8, up8
from spaces.mobilenetv3.codes import from_ofa, to_ofa
from spaces.mobilenetv3.config import MobileNetV3Config, strides
from spaces.mobilenetv3.network import settle_head
from spaces.mobilenetv3.presets import PRESETS
from spaces.mobilenetv3.skeletons import SKELETONS, Stage
from spaces.mobilenetv3.supernet import MobileNetV3Supernet
from spaces.registry import spaces
from spaces.space import Space, task_of
from spaces.supernet import Supernet


@spaces.register("mobilenetv3")
class MobileNetV3Space(Space):
    """Inverted residuals on a skeleton, searched block by block (Cai et al. 2020, "Once for All", section 3).

    Stage 1 is the skeleton's first block and is not searched; the others carry the number that they have in `layers`.
    MobileNetV3-Large, -Small and MobileNetV2 are points on the skeletons `large`, `small` and `v2`.
    """

    Config = MobileNetV3Config
    config: MobileNetV3Config
    presets = PRESETS

    def __init__(self, config: MobileNetV3Config) -> None:
        self.skeleton = SKELETONS[config.skeleton]
        self.strides = strides(config)
        super().__init__(config)
        classes, size = (10, 32) if config.dataset == "cifar" else (1000, 224)
        self.default_task = task_of(num_outputs=classes, img_size=max(config.resolutions, default=size))

    def _decisions(self) -> list[Decision]:
        found = []
        if len(self.config.resolutions) > 1:
            found.append(Decision("resolution", self.config.resolutions))
        for name, stage in self._stages():
            depths = self.config.depths or stage.depths
            found.append(Decision(f"{name}.depth", depths))
            if len(self.config.widths) > 1:
                found.append(Decision(f"{name}.width", self.config.widths))
            for layer in range(1, max(depths) + 1):
                found.extend(self._decisions_of_block(name, layer, depths))
        return found

    def _decisions_of_block(self, stage: str, layer: int, depths: Sequence[int]) -> list[Decision]:
        deep = [depth for depth in depths if depth >= layer]
        when = where(f"{stage}.depth", *deep) if len(deep) < len(depths) else None
        found = [
            Decision(f"{stage}.layer{layer}.kernel", self.config.kernels, when),
            Decision(f"{stage}.layer{layer}.expand", self.config.expands or self.skeleton.expands, when),
        ]
        if self.config.se == "searched":
            found.append(Decision(f"{stage}.layer{layer}.se", (False, True), when))
        return found

    def rows(self, arch: Architecture) -> NetworkRows:
        """Return the table of a checked `arch`."""
        skeleton, width = self.skeleton, self.config.width
        stem = self.channels(skeleton.stem)
        first, base = skeleton.first, float(skeleton.first.width)
        row = self._row(3, stem, self.channels(base), self.strides[1], first.se, first)
        mix = BlockRow(1, stem, stem, activation=skeleton.activation, operation="conv", skip="none")
        blocks: list[tuple[BlockRow, ...]] = [(mix, row) if skeleton.mix else (row,)]
        for (name, stage), stride in zip(self._stages(), self.strides[2:], strict=True):
            blocks.append(self._rows_of_stage(arch, name, stage, blocks[-1][-1].out, base, stride))
            base = stage.width * self._multiplier(arch, name)
        kept = max(1.0, width)
        return NetworkRows(
            stem=stem,
            blocks=tuple(blocks),
            last_conv=round8(skeleton.last_conv * (kept if skeleton.wide_last else width)),
            head=None if skeleton.head is None else round8(skeleton.head * kept),
            stem_stride=self.strides[0],
            stem_activation=skeleton.activation,
            last_activation=skeleton.activation,
            dropout=self.config.dropout,
        )

    def _rows_of_stage(
        self, arch: Architecture, name: str, stage: Stage, channels: int, base: float, stride: int
    ) -> tuple[BlockRow, ...]:
        multiplier = self._multiplier(arch, name)
        out = self._width(stage, multiplier)
        found = []
        for layer in range(1, arch.number(f"{name}.depth") + 1):
            block = f"{name}.layer{layer}"
            hidden = self._hidden(channels, base, arch[f"{block}.expand"])
            se = bool(arch.get(f"{block}.se", stage.se))
            found.append(self._row(arch.number(f"{block}.kernel"), hidden, out, stride, se, stage))
            channels, base, stride = out, stage.width * multiplier, 1
        return tuple(found)

    def _row(self, kernel: int, hidden: int, out: int, stride: int, se: bool, stage: Stage) -> BlockRow:
        return BlockRow(kernel, hidden, out, stride, round8(hidden / 4) if se else 0, stage.activation)

    def channels(self, base: float) -> int:
        """Return the channels that `base` of them become at the network's width, by the skeleton's rule."""
        cap, width = self.skeleton.cap, self.config.width
        return round8(base * width) if cap is None else up8(min(base, cap) * width)

    def _hidden(self, channels: int, base: float, expand: Choice) -> int:
        """Return a block's middle channels, for input `channels` that were `base` before the network's width."""
        return round8(channels * float(expand)) if self.skeleton.cap is None else self.channels(base * float(expand))

    def _width(self, stage: Stage, multiplier: Choice) -> int:
        return self.channels(stage.width * float(multiplier))

    def _multiplier(self, arch: Architecture, stage: str) -> float:
        return float(arch.get(f"{stage}.width", self.config.widths[0]))

    def _stages(self) -> Iterator[tuple[str, Stage]]:
        """Yield the name of each searched stage and its part of the skeleton."""
        for number, stage in enumerate(self.skeleton.stages, 2):
            yield f"stage{number}", stage

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        network = MobileNet(self.rows(arch), task)
        settle_head(network, self.skeleton)
        return network

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        found = layers(self.rows(arch), task)
        if self.skeleton.head_bias:
            return found
        return [replace(row, params=row.params - row.out_channels) if row.name == "head" else row for row in found]

    def _supernet(self, task: Task) -> Supernet:
        return MobileNetV3Supernet(self, task)

    def input_size(self, arch: Architecture, img_size: int | None = None) -> int:
        """Return the image side in pixels that `arch` has chosen; `img_size` where the resolution is not searched."""
        if "resolution" in arch:
            return arch.number("resolution")
        return super().input_size(arch, img_size)

    def largest(self) -> Architecture:
        """Return the architecture whose weights contain those of all others."""
        return self.check({each.name: max(each.choices) for each in self.decisions}, drop_untaken=True)

    def _canonical(self, arch: Architecture) -> Architecture:
        """Return `arch` with each width and expansion replaced by the smallest that rounds to the same channels."""
        found = dict(arch)
        rows = self.rows(arch)
        channels, base = rows.blocks[0][-1].out, float(self.skeleton.first.width)
        expands = self.config.expands or self.skeleton.expands
        for (name, stage), blocks in zip(self._stages(), rows.blocks[1:], strict=True):
            if f"{name}.width" in found and self.skeleton.cap is None:  # else the middle channels tell widths apart
                found[f"{name}.width"] = next(w for w in self.config.widths if self._width(stage, w) == blocks[0].out)
            for layer, row in enumerate(blocks, 1):
                same = (each for each in expands if self._hidden(channels, base, each) == row.hidden)
                found[f"{name}.layer{layer}.expand"] = next(same)
                channels, base = row.out, stage.width * self._multiplier(arch, name)
        return Architecture(found)

    # Once-for-All's codes.

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the architecture of Once-for-All's notation `{"ks": [...], "e": [...], "d": [...]}`; see codes.py."""
        return self.check(from_ofa(code, self.decisions), drop_untaken=True)

    def to_code(self, arch: Architecture) -> dict[str, list[Choice]]:
        """Return `arch` in Once-for-All's notation."""
        return to_ofa(self.check(arch), self.decisions)

    def parse(self, value: Any) -> Architecture:
        """Return the architecture of a mapping of choices, of a code, or of a file written by `to_dict`."""
        if isinstance(value, Mapping) and "ks" in value:
            return self.check(self.from_code(value))
        return super().parse(value)
