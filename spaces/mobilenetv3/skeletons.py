"""What the elastic space leaves fixed: the sequence of stages, their widths, strides, gates and activations."""

from __future__ import annotations

from dataclasses import dataclass

from spaces.mobilenet.tables import Activation


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks of one width; the first has the stride.

    Attributes:
        width: output channels.
        stride: of the first block.
        activation: of every block.
        se: whether every block has squeeze-and-excite.
        depths: numbers of blocks to choose from, where the space's options name none.
    """

    width: int
    stride: int
    activation: Activation
    se: bool = False
    depths: tuple[int, ...] = (2, 3, 4)


@dataclass(frozen=True)
class Skeleton:
    """A network with its kernels, expansion ratios and depths left open.

    Attributes:
        stem: channels of the 3x3 stem, whose stride is 2.
        first: the block after the stem, which is not searched: kernel 3, no expansion.
        stages: the searched ones.
        last_conv: channels of the last 1x1 convolution.
        head: features between pooling and classifier; None for none.
        head_bias: whether the layer that makes them has a bias.
        activation: of stem, last convolution and head.
        expands: expansion ratios to choose from, where the space's options name none.
        wide_last: whether the last convolution keeps its channels where the network is made narrower.
        mix: whether a 1x1 convolution comes between stem and first block.
        cap: most channels before the width multiplier, after which they are rounded up to a multiple of 8 (LeYOLO's
            rule); None: no cap, and MobileNetV2's rule.
    """

    stem: int
    first: Stage
    stages: tuple[Stage, ...]
    last_conv: int
    head: int | None
    head_bias: bool = True
    activation: Activation = "hswish"
    expands: tuple[int | float, ...] = (3, 4, 6)
    wide_last: bool = False
    mix: bool = False
    cap: int | None = None

    def strides(self) -> tuple[int, ...]:
        """Return the strides of the stem, of the first block and of each stage, as for images of 224 pixels."""
        return (2, self.first.stride, *(stage.stride for stage in self.stages))


SKELETONS = {
    # Cai et al. 2020 and their code
    "ofa": Skeleton(
        stem=16,
        first=Stage(16, 1, "relu"),
        stages=(
            Stage(24, 2, "relu"),
            Stage(40, 2, "relu", se=True),
            Stage(80, 2, "hswish"),
            Stage(112, 1, "hswish", se=True),
            Stage(160, 2, "hswish", se=True),
        ),
        last_conv=960,
        head=1280,
        head_bias=False,
    ),
    # Howard et al. 2019, table 1
    "large": Skeleton(
        stem=16,
        first=Stage(16, 1, "relu"),
        stages=(
            Stage(24, 2, "relu"),
            Stage(40, 2, "relu", se=True),
            Stage(80, 2, "hswish"),
            Stage(112, 1, "hswish", se=True),
            Stage(160, 2, "hswish", se=True),
        ),
        last_conv=960,
        head=1280,
        expands=(2.3, 2.5, 3, 4, 6),
    ),
    # Howard et al. 2019, table 2
    "small": Skeleton(
        stem=16,
        first=Stage(16, 2, "relu", se=True),
        stages=(
            Stage(24, 2, "relu"),
            Stage(40, 2, "hswish", se=True),
            Stage(48, 1, "hswish", se=True),
            Stage(96, 2, "hswish", se=True),
        ),
        last_conv=576,
        head=1024,
        expands=(3, 3.67, 4, 4.5, 6),
    ),
    # Sandler et al. 2018, table 2
    "v2": Skeleton(
        stem=32,
        first=Stage(16, 1, "relu6"),
        stages=(
            Stage(24, 2, "relu6"),
            Stage(32, 2, "relu6"),
            Stage(64, 2, "relu6"),
            Stage(96, 1, "relu6"),
            Stage(160, 2, "relu6"),
            Stage(320, 1, "relu6", depths=(1,)),
        ),
        last_conv=1280,
        head=None,
        activation="relu6",
        wide_last=True,
    ),
    # Hollard et al. 2024 (LeYOLO): the backbone of a detector; a classifier on it has MobileNetV3-Small's top
    "leyolo": Skeleton(
        stem=16,
        first=Stage(16, 2, "silu"),
        stages=(
            Stage(32, 2, "silu", depths=(1, 2, 3)),
            Stage(64, 2, "silu", depths=(2, 3, 4, 5, 6)),
            Stage(96, 2, "silu", depths=(2, 3, 4, 5)),
        ),
        last_conv=576,
        head=1024,
        activation="silu",
        expands=(3, 6, 9),
        mix=True,
        cap=576,
    ),
    # for images of 32 pixels and searches on a CPU
    "tiny": Skeleton(
        stem=16,
        first=Stage(8, 1, "relu"),
        stages=(
            Stage(16, 2, "relu", depths=(1, 2)),
            Stage(24, 2, "hswish", se=True, depths=(1, 2)),
            Stage(40, 2, "hswish", se=True, depths=(1, 2)),
        ),
        last_conv=120,
        head=160,
        expands=(2, 3, 4),
    ),
}
"""The skeletons by name."""
