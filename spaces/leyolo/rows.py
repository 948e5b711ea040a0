"""A detector as a table of rows, and what it costs without building it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from evaluators.tasks import Task
from spaces.layers import Cost, Layer, conv, halved
from spaces.mobilenet.tables import BlockRow, NetworkRows, block_layer, stage_layers

PARTS = ("topdown_middle", "topdown_fine", "bottomup_middle", "bottomup_coarse")
"""What the pyramid computes, in order: first from coarse to fine maps, then back. The last three feed the heads."""
FINE = "topdown_fine"
"""The part whose first block expands nothing."""
LEVEL_OF = (1, 0, 1, 2)
"""The level of the maps of each part, counted from the finest."""
LEVELS = 3


@dataclass(frozen=True)
class DetectorRows:
    """A whole detector.

    Attributes:
        backbone: stem and stages; its last convolution and classifier are not part of the detector.
        taps: numbers (from 0) of the stages whose maps the pyramid takes, finest first.
        strides: of these maps.
        pooled: channels that the pooling pyramid hands on.
        parts: blocks of each of `PARTS`.
        bins: distances that each side of a box is a mixture of.
    """

    backbone: NetworkRows
    taps: tuple[int, int, int]
    strides: tuple[int, int, int]
    pooled: int
    parts: tuple[tuple[BlockRow, ...], ...]
    bins: int

    @property
    def tapped(self) -> tuple[int, int, int]:
        """Channels of the backbone's maps, finest first."""
        fine, middle, coarse = (self.backbone.blocks[stage][-1].out for stage in self.taps)
        return fine, middle, coarse

    @property
    def outs(self) -> tuple[int, int, int, int]:
        """Channels that each of `PARTS` hands on."""
        one, two, three, four = (part[-1].out for part in self.parts)
        return one, two, three, four

    @property
    def ins(self) -> tuple[int, int, int, int]:
        """Channels that each of `PARTS` is handed: those of the part before, then those that are concatenated."""
        fine, middle, _ = self.tapped
        topdown, _, _, _ = self.outs
        return self.pooled + middle, topdown + fine, 2 * topdown, 2 * self.pooled

    def head_widths(self, num_classes: int) -> tuple[int, int]:
        """Return the channels within the heads' branches for boxes and for classes (the background is none)."""
        finest = self.outs[1]
        return max(16, finest // 4, 4 * self.bins), max(finest, min(num_classes, 100))


def taps_of(rows: NetworkRows) -> tuple[list[int], list[int]]:
    """Return the stages after which a map of each stride is complete, and these strides.

    A stage's map is complete where the next one begins with a stride: what is taken is the block's output, before the
    expansion of the block that halves it.
    """
    found: dict[int, int] = {}
    stride = rows.stem_stride
    for number, stage in enumerate(rows.blocks):
        for row in stage:
            stride *= row.stride
        found[stride] = number
    return list(found.values()), list(found)


def layers(rows: DetectorRows, task: Task) -> list[Layer]:
    """Describe the whole detector; `params` and `macs` add up to exactly those of `Detector(rows, task)`."""
    found = stage_layers(rows.backbone, task)
    sizes = [_size(task, stride) for stride in rows.strides]
    channels = rows.tapped[2]
    half = rows.pooled // 2
    cost = conv(channels, half, 1, sizes[2]) + conv(4 * half, rows.pooled, 1, sizes[2])
    found.append(Layer("sppf", "pooling pyramid k5", rows.pooled, sizes[2], 1, cost.params, cost.macs))
    topdown, fine, middle, _ = rows.outs
    for part, blocks, into, level in zip(PARTS, rows.parts, rows.ins, LEVEL_OF, strict=True):
        if part == "bottomup_middle":
            found.append(_down("down_middle", fine, topdown, sizes[1]))
        elif part == "bottomup_coarse":
            found.append(_down("down_coarse", middle, rows.pooled, sizes[2]))
        for number, row in enumerate(blocks, 1):
            found.append(block_layer(f"{part}.layer{number}", into, row, sizes[level]))
            into = row.out
    return found + list(_heads(rows, task.num_outputs - 1, sizes))


def _down(name: str, channels: int, out: int, size: int) -> Layer:
    cost = conv(channels, out, 3, size)
    return Layer(name, "conv k3", out, size, 2, cost.params, cost.macs)


def _heads(rows: DetectorRows, num_classes: int, sizes: list[int]) -> Iterator[Layer]:
    for name, channels, size in zip(("fine", "middle", "coarse"), rows.outs[1:], sizes, strict=True):
        total = Cost()
        for width, out in zip(rows.head_widths(num_classes), (4 * rows.bins, num_classes), strict=True):
            total += conv(channels, width, 1, size)
            total += conv(width, width, 3, size, groups=width) + conv(width, width, 3, size, groups=width)
            total += conv(width, out, 1, size, bias=True, norm=False)
        yield Layer(f"head.{name}", "decoupled head", 4 * rows.bins + num_classes, size, 1, total.params, total.macs)


def _size(task: Task, stride: int) -> int:
    size = task.img_size
    while stride > 1:
        size, stride = halved(size), stride // 2
    return size
