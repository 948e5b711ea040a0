"""The space of "MnasNet: Platform-Aware Neural Architecture Search for Mobile" (Tan et al., section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

from pydantic import Field, model_validator
from torch import nn

from compress.core.config import Config
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.layers import Layer
from spaces.mnasnet.codes import MNASNET_A1, MNASNET_B1, from_strings, to_strings
from spaces.mnasnet.supernet import MnasNetSupernet
from spaces.mobilenet.network import MobileNet
from spaces.mobilenet.tables import BlockRow, NetworkRows, Skip, layers, round8
from spaces.registry import spaces
from spaces.space import Preset, Space
from spaces.supernet import Supernet

EXPANSION = {"conv": 0, "dwconv": 1, "mbconv3": 3, "mbconv6": 6}
"""The operations, and by how much each widens its input; a plain convolution has no inner width."""


class MnasNetConfig(Config):
    """The network that the choices of each stage are relative to; MobileNetV2 by default."""

    widths: tuple[int, ...] = Field((16, 24, 32, 64, 96, 160, 320), description="channels of each stage")
    depths: tuple[int, ...] = Field((1, 2, 3, 4, 3, 3, 1), description="layers of each stage")
    strides: tuple[int, ...] = Field((1, 2, 2, 2, 1, 2, 1), description="stride of each stage, 1 or 2")
    filters: tuple[float, ...] = Field((0.75, 1.0, 1.25), min_length=1, description="factors on a stage's channels")
    stem: int = Field(32, ge=1, description="channels of the stem")
    stem_stride: int = Field(2, ge=1, le=2, description="stride of the stem; 1 suits images of 32 pixels")
    last_conv: int = Field(1280, ge=1, description="channels of the last convolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the classifier; the paper trains with 0.2")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.widths) == len(self.depths) == len(self.strides) > 0:
            raise ValueError("widths, depths and strides need one number for each stage")
        if min(self.widths + self.depths) < 1 or not set(self.strides) <= {1, 2}:
            raise ValueError("widths and depths are at least 1, strides 1 or 2")
        if min(self.filters) <= 0 or len(set(self.filters)) < len(self.filters):
            raise ValueError("filters are positive and all different")
        return self


_PUBLISHED = {"filters": (0.75, 1.0, 1.2), "dropout": 0.2}
"""1.2 times MobileNetV2's widths, rounded to 8, are the 40, 80, 112 and 192 channels of the published networks."""


@spaces.register("mnasnet")
class MnasNet(Space):
    """All layers of a stage are alike; each stage decides operation, kernel, squeeze-excite, skip, width and depth.

    Depths are one less, the same or one more than the base's (never 0); widths are rounded to multiples of 8. The
    shortcut `pool` is a 3x3 average pool with the layer's stride whose channels are cut or filled with zeros, the
    paper not saying more. The squeeze-excite bottleneck has a quarter of the block's input channels. The code is a
    list of the strings of the reference implementation, such as `r3_k5_s22_e3_i24_o40_se0.25`.
    """

    Config = MnasNetConfig
    presets: ClassVar[Mapping[str, Preset]] = {
        "a1": Preset("MnasNet-A1: 75.2 % on ImageNet with 312 M MACs (table 1)", _PUBLISHED, MNASNET_A1),
        "b1": Preset("MnasNet-B1: A1's sister without squeeze-excite, 315 M MACs", _PUBLISHED, MNASNET_B1),
        "cifar": Preset("the space for images of 32 pixels", {"stem_stride": 1, "strides": (1, 1, 2, 2, 1, 2, 1)}),
    }
    config: MnasNetConfig

    def _decisions(self) -> Sequence[Decision]:
        found = []
        for stage, depth in enumerate(self.config.depths, 1):
            found += [
                Decision(f"stage{stage}.operation", tuple(EXPANSION)),
                Decision(f"stage{stage}.kernel", (3, 5)),
                Decision(f"stage{stage}.se", (0.0, 0.25)),
                Decision(f"stage{stage}.skip", ("pool", "identity", "none")),
                Decision(f"stage{stage}.filters", self.config.filters),
                Decision(f"stage{stage}.layers", tuple(range(max(1, depth - 1), depth + 2))),
            ]
        return found

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of a list of one string for each stage."""
        return from_strings(self, code)

    def to_code(self, arch: Mapping[str, Choice]) -> list[str]:
        """Return one string for each stage, as the reference implementation writes them.

        `_conv` (with e1) marks a plain convolution and `_pool` a pooled shortcut, for which it has no words.
        """
        return to_strings(self, self.check(arch))

    def _canonical(self, arch: Architecture) -> Architecture:
        """Return the encoding with the first factor of equal widths, and skip `none` where no shortcut fits."""
        choices = dict(arch)
        channels = self.config.stem
        for stage, stride in enumerate(self.config.strides, 1):
            name = f"stage{stage}"
            widths = self.widths(stage)
            out = widths[self.config.filters.index(float(choices[f"{name}.filters"]))]
            choices[f"{name}.filters"] = self.config.filters[widths.index(out)]
            fits = choices[f"{name}.layers"] != 1 or (stride == 1 and channels == out)
            if choices[f"{name}.skip"] == "identity" and not fits:
                choices[f"{name}.skip"] = "none"
            channels = out
        return Architecture(choices)

    def widths(self, stage: int) -> tuple[int, ...]:
        """Return the channels that each of the factors gives `stage` (from 1)."""
        return tuple(round8(self.config.widths[stage - 1] * factor) for factor in self.config.filters)

    def rows(self, arch: Architecture) -> NetworkRows:
        """Return the rows of the network."""
        channels = self.config.stem
        stages = []
        for stage in range(1, len(self.config.widths) + 1):
            stages.append(self._stage(arch, stage, channels))
            channels = stages[-1][-1].out
        config = self.config
        return NetworkRows(
            config.stem,
            tuple(stages),
            config.last_conv,
            stem_stride=config.stem_stride,
            stem_activation="relu",
            last_activation="relu",
            dropout=config.dropout,
        )

    def _stage(self, arch: Architecture, stage: int, channels: int) -> tuple[BlockRow, ...]:
        name = f"stage{stage}"
        operation = arch.text(f"{name}.operation")
        ratio = float(arch[f"{name}.se"])
        out = self.widths(stage)[self.config.filters.index(float(arch[f"{name}.filters"]))]
        rows: list[BlockRow] = []
        for layer in range(arch.number(f"{name}.layers")):
            rows.append(
                BlockRow(
                    kernel=arch.number(f"{name}.kernel"),
                    hidden=channels * EXPANSION[operation],
                    out=out,
                    stride=1 if layer else self.config.strides[stage - 1],
                    se=max(1, int(channels * ratio)) if ratio else 0,
                    operation="conv" if operation == "conv" else "mbconv",
                    skip=cast(Skip, arch[f"{name}.skip"]),
                    gate="sigmoid",
                )
            )
            channels = out
        return tuple(rows)

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return MobileNet(self.rows(arch), task)

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        return layers(self.rows(arch), task)

    def _supernet(self, task: Task) -> Supernet:
        return MnasNetSupernet(self, task)
