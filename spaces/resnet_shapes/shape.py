"""What can be chosen for a CIFAR ResNet, and what a choice makes of it: how wide each convolution is.

Dong and Yang, "Network Pruning via Transformable Architecture Search", section 3, with the choices of the published
code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

BlockKind = Literal["basic", "bottleneck"]
KERNELS: dict[BlockKind, tuple[int, ...]] = {"basic": (3, 3), "bottleneck": (1, 3, 1)}
"""Kernels of a block's convolutions; the first one of 3 pixels has the stride."""
EXPANSION: dict[BlockKind, int] = {"basic": 1, "bottleneck": 4}
"""How much wider than the others a block's last convolution is."""
CHANNELS = (16, 32, 64)
"""Of the three stages; the first also the stem's."""


def width_choices(channels: int) -> tuple[int, ...]:
    """Return the widths of a convolution with `channels` output channels: 30 % of them in steps of 10 % to all."""
    return tuple(dict.fromkeys(channels * tenths // 10 for tenths in range(3, 11)))


def depth_choices(blocks: int) -> tuple[int, ...]:
    """Return the depths of a stage of `blocks`: all up to three blocks, beyond that the odd ones and the whole."""
    return tuple(sorted({*range(1, blocks + 1, 1 if blocks <= 3 else 2), blocks}))


def blocks_per_stage(depth: int, kind: BlockKind) -> int:
    """Return n of a ResNet of 6n + 2 layers (9n + 2 with bottlenecks); ValueError for another depth."""
    layers = 3 * len(KERNELS[kind])
    if depth <= 2 or (depth - 2) % layers:
        raise ValueError(f"depth is {layers}n + 2 with {kind} blocks, such as {2 * layers + 2}; got {depth}")
    return (depth - 2) // layers


@dataclass(frozen=True)
class Block:
    """One residual block.

    Attributes:
        stage, number: its place, each counted from 0.
        inputs: channels of the map that it gets.
        widths: of its convolutions.
        stride: 2 in the first block of the second and third stage.
        padded: whether its shortcut is the identity in the whole network, so that a 1x1 convolution is there only where
            the widths have become different.
    """

    stage: int
    number: int
    inputs: int
    widths: tuple[int, ...]
    stride: int
    padded: bool

    @property
    def outputs(self) -> int:
        """Channels that it hands on."""
        return self.widths[-1]

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a 1x1 convolution."""
        return not self.padded or self.inputs != self.outputs


@dataclass(frozen=True)
class Shape:
    """How wide a network is: the stem, and for each stage its blocks with the widths of their convolutions."""

    kind: BlockKind
    stem: int
    stages: tuple[tuple[tuple[int, ...], ...], ...]

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks in their order."""
        inputs = self.stem
        for stage, blocks in enumerate(self.stages):
            for number, widths in enumerate(blocks):
                first = number == 0
                padded = not first or (stage == 0 and EXPANSION[self.kind] == 1)
                yield Block(stage, number, inputs, widths, 2 if first and stage else 1, padded)
                inputs = widths[-1]

    @property
    def last(self) -> int:
        """Channels before the classifier."""
        return self.stages[-1][-1][-1]

    def normed_shortcut(self, block: Block) -> bool:
        """Return whether a batch norm follows the 1x1 convolution of a shortcut, as in the published networks."""
        return self.kind == "basic" and block.stride == 1
