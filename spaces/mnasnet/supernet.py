"""MnasNet's supernet: the layers of every operation at their largest, run at the sizes of the active architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from compress.core.meta import without_storage
from evaluators.tasks import Task
from spaces.architecture import Architecture
from spaces.mobilenet.blocks import Bottleneck, ConvBlock, initialise
from spaces.mobilenet.network import MobileNet
from spaces.mobilenet.sliced import SlicedConv, bottleneck, conv_block, crop
from spaces.mobilenet.tables import BlockRow
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from spaces.mnasnet.space import MnasNet


class SlicedLayer(nn.Module):
    """A layer that can be every operation: largest kernel, input and output, of which `row` uses a part."""

    def __init__(self, in_channels: int, row: BlockRow) -> None:
        super().__init__()
        self.conv = ConvBlock(in_channels, replace(row, operation="conv"))
        self.dwconv = Bottleneck(in_channels, replace(row, hidden=in_channels))
        self.mbconv = Bottleneck(in_channels, row)
        self.row: BlockRow | None = row

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block of `row` on (N, c, H, W), c <= in_channels; without a row, nothing."""
        if self.row is None:
            return x
        if self.row.operation == "conv":
            return conv_block(self.conv, x, self.row)
        return bottleneck(self.dwconv if self.row.hidden == x.shape[1] else self.mbconv, x, self.row)


class MnasNetSupernet(Supernet):
    """Shared are: the first channels between widths, the centre between kernels, the first layers between depths.

    Plain convolution, depthwise-separable convolution and inverted residual have weights of their own; the inverted
    residual's two expansions share theirs.
    """

    space: MnasNet

    def __init__(self, space: MnasNet, task: Task) -> None:
        super().__init__(space, task)
        self.network = MobileNet(space.rows(_largest(space)), task, SlicedLayer)
        last = self.network.last
        self.network.last = SlicedConv(last.in_channels, last.out_channels, 1, bias=False)
        initialise(self.network.last)

    def _activate(self, arch: Architecture) -> None:
        for stage, rows in zip(self._stages(), self.space.rows(arch).blocks, strict=True):
            for layer, module in enumerate(stage):
                module.row = rows[layer] if layer < len(rows) else None

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return slices of the shared state under the names of `arch`'s stand-alone network."""
        with without_storage():
            wanted = MobileNet(self.space.rows(arch), self.task).state_dict()
        shared = self.network.state_dict()
        return {name: crop(shared[_shared_name(name, arch)], value.shape) for name, value in wanted.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of the active architecture."""
        return cast(Tensor, self.network(images))

    def _stages(self) -> Iterator[list[SlicedLayer]]:
        for stage in self.network.stages:
            yield [cast(SlicedLayer, layer) for layer in stage.children()]


def _largest(space: MnasNet) -> Architecture:
    choices = {decision.name: decision.choices[-1] for decision in space.decisions}
    widest = max(space.config.filters)
    return space.check(choices | {name: widest for name in choices if name.endswith(".filters")})


def _shared_name(name: str, arch: Architecture) -> str:
    """Return where the supernet keeps the tensor `name` of a stand-alone network: `stages.0.1.mbconv.expand.weight`."""
    if not name.startswith("stages."):
        return name
    _, stage, layer, rest = name.split(".", 3)
    operation = arch.text(f"stage{int(stage) + 1}.operation").rstrip("36")
    return f"stages.{stage}.{layer}.{operation}.{rest}"
