"""Once-for-All's supernet: the largest network of a space, which computes all others with its first channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from compress.core.meta import without_storage
from evaluators.tasks import Task
from spaces.architecture import Architecture
from spaces.mobilenet.blocks import block as plain_block
from spaces.mobilenet.network import MobileNet, Stages
from spaces.mobilenet.sliced import conv, crop
from spaces.mobilenet.tables import BlockRow, NetworkRows
from spaces.mobilenetv3.elastic import ElasticBottleneck
from spaces.mobilenetv3.network import settle_head
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from spaces.mobilenetv3.space import MobileNetV3Space


class ElasticMobileNet(MobileNet):
    """The largest network, which computes the one in `active_rows` with its first channels, blocks and kernel centres.

    Its parameters are named as the stand-alone network's; the kernel matrices come on top.
    """

    def __init__(self, rows: NetworkRows, task: Task, kernels: Sequence[int]) -> None:
        super().__init__(rows, task, partial(elastic_block, kernels=kernels))
        self.active_rows = rows

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the active network's last map."""
        *_, x = elastic_maps(self, self.active_rows, images)
        features: Tensor = self.last_activation(self.last_norm(conv(self.last, x, self.last.out_channels)))
        return features

    def blocks_of(self, rows: NetworkRows) -> Iterator[tuple[str, ElasticBottleneck, BlockRow]]:
        """Yield the name, the module and the row of each elastic block that the network of `rows` uses."""
        for number, stage in enumerate(rows.blocks):
            blocks = cast(nn.Sequential, self.stages[number])
            yield from elastic_blocks(f"stages.{number}", blocks, stage)


def elastic_block(in_channels: int, row: BlockRow, kernels: Sequence[int]) -> nn.Module:
    """Return a block that can compute smaller ones; a plain convolution has none."""
    return plain_block(in_channels, row) if row.operation == "conv" else ElasticBottleneck(in_channels, row, kernels)


def elastic_blocks(
    prefix: str, blocks: nn.Sequential, rows: Sequence[BlockRow]
) -> Iterator[tuple[str, ElasticBottleneck, BlockRow]]:
    """Yield the name, the module and the row of each elastic one of the first of `blocks`, as many as `rows`."""
    for layer, row in enumerate(rows):
        found = blocks[layer]
        if isinstance(found, ElasticBottleneck):
            yield f"{prefix}.{layer}", found, row


def run_blocks(blocks: nn.Sequential, rows: Sequence[BlockRow], x: Tensor) -> Tensor:
    """Return what the first of `blocks`, as the variants `rows`, make of maps (N, C, H, W)."""
    for layer, row in enumerate(rows):
        found = blocks[layer]
        x = found(x, row) if isinstance(found, ElasticBottleneck) else found(x)
    return x


def elastic_maps(whole: Stages, rows: NetworkRows, images: Tensor) -> Iterator[Tensor]:
    """Yield the map of the network of `rows` after each stage, for images (N, in_chans, H, W)."""
    x = whole.stem_activation(whole.stem_norm(whole.stem(images)))
    for blocks, stage in zip(whole.stages, rows.blocks, strict=True):
        x = run_blocks(cast(nn.Sequential, blocks), stage, x)
        yield x


class ElasticSupernet(Supernet):
    """One set of weights for every network of a space whose blocks are elastic (Cai et al. 2020, section 3).

    A subclass sets `shared` to the largest network, with `active_rows` and `blocks_of`; its space has `rows`.
    """

    space: Any
    shared: Any

    def _activate(self, arch: Architecture) -> None:
        self.shared.active_rows = self.space.rows(arch)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the active architecture gives for images (N, C, H, W)."""
        outputs: Tensor = self.shared(images)
        return outputs

    @torch.no_grad()
    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the state of the stand-alone network: parts of the shared tensors, and its own kernels."""
        with without_storage():
            alone = self.space.build(arch, self.task).state_dict()
        shared = self.shared.state_dict()
        found = {name: crop(shared[name], tensor.shape) for name, tensor in alone.items()}
        for name, block, row in self.shared.blocks_of(self.space.rows(arch)):
            found[f"{name}.depthwise.weight"] = block.kernel(row.hidden, row.kernel)
        return found


class MobileNetV3Supernet(ElasticSupernet):
    """One set of weights for every network of an elastic MobileNetV3 space."""

    def __init__(self, space: MobileNetV3Space, task: Task) -> None:
        super().__init__(space, task)
        self.shared = ElasticMobileNet(space.rows(space.largest()), task, space.config.kernels)
        settle_head(self.shared, space.skeleton)
        self.activate(space.largest())

    def sort_channels(self) -> None:
        """Put each block's middle channels in falling order of L1 norm, so that narrow variants keep the strong ones.

        The largest width of each block computes what it did. Do it once, before expansions become elastic (Cai et al.
        2020, section 3.3), and make the optimiser afterwards: its momenta do not move along.
        """
        for _, block, _ in self.shared.blocks_of(self.space.rows(self.space.largest())):
            block.sort_channels()
