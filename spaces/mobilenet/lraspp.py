"""LR-ASPP, the segmentation head of MobileNetV3 (Howard et al., section 6.4 and figure 10)."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import InputError
from spaces.mobilenet.blocks import initialise
from spaces.mobilenet.network import Trunk
from spaces.mobilenet.tables import BlockRow, NetworkRows, round8


class LRASPPHead(nn.Module):
    """Logits from a gated high-level map and a finer low-level map; the gate comes from the global average."""

    def __init__(self, high_channels: int, low_channels: int, features: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(high_channels, features, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(features)
        self.gate = nn.Conv2d(high_channels, features, 1, bias=False)
        self.high_classifier = nn.Conv2d(features, num_classes, 1)
        self.low_classifier = nn.Conv2d(low_channels, num_classes, 1)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Map (N, high_channels, H / 16, W / 16) and (N, low_channels, H / 8, W / 8) to (N, classes, H / 8, W / 8)."""
        gate = self.gate(high.mean((2, 3), keepdim=True)).sigmoid()
        gated = F.relu(self.project_norm(self.project(high))) * gate
        gated = F.interpolate(gated, size=low.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.high_classifier(gated) + self.low_classifier(low)
        return logits


class LRASPP(nn.Module):
    """A segmentation network: `trunk` of output stride 16, its map of stride 8 after `low` (stage, layer), the head."""

    def __init__(self, trunk: Trunk, low: tuple[int, int], features: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.low = low
        low_channels = trunk.rows.blocks[low[0]][low[1]].out
        self.head = LRASPPHead(trunk.rows.last_conv, low_channels, features, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes, H, W)."""
        high, low = self.trunk.tapped(images, self.low)
        return F.interpolate(self.head(high, low), size=images.shape[-2:], mode="bilinear", align_corners=False)


def lraspp(
    network: NetworkRows | Trunk, num_classes: int, in_chans: int = 3, features: int = 128, half_tail: bool = False
) -> LRASPP:
    """Return a segmentation network on a MobileNet, with its strides beyond 16 turned into dilations.

    Args:
        network: the rows of a MobileNet, or a MobileNet (such as a trained classifier) whose trunk weights it starts
            from.
        num_classes: number of classes, the background's included.
        in_chans: image channels; taken from `network` where that is a module.
        features: channels of the head, 128 or 256 in the paper.
        half_tail: halve the channels from the last stage on (the paper's RF2); only for rows.

    Raises:
        InputError: for a network without a map of stride 8 or 16, or `half_tail` with a module.
    """
    if half_tail and isinstance(network, Trunk):
        raise InputError("lraspp: half_tail changes widths, so it is for the rows of a network; got a module")
    rows = network.rows if isinstance(network, Trunk) else network
    rows = dilated(halved_tail(rows) if half_tail else rows)
    module = LRASPP(Trunk(rows, _in_chans(network, in_chans)), _low_level(rows), features, num_classes)
    if isinstance(network, Trunk):
        state = network.state_dict()
        module.trunk.load_state_dict({name: state[name] for name in module.trunk.state_dict()})
    return module


def dilated(rows: NetworkRows, output_stride: int = 16) -> NetworkRows:
    """Replace every stride that would take the map beyond `output_stride` by dilation of the kernels from there on."""
    reached, dilation = rows.stem_stride, 1
    stages = []
    for stage in rows.blocks:
        blocks = []
        for row in stage:
            if row.stride > 1 and reached * row.stride > output_stride:
                dilation *= row.stride
                row = replace(row, stride=1)
            reached *= row.stride
            blocks.append(replace(row, dilation=row.dilation * dilation))
        stages.append(tuple(blocks))
    return replace(rows, blocks=tuple(stages))


def halved_tail(rows: NetworkRows) -> NetworkRows:
    """Halve the output of the last stage, the widths of its blocks after the first, and the last convolution."""
    first, *rest = rows.blocks[-1]
    tail = [replace(first, out=round8(first.out / 2)), *(_halved(row) for row in rest)]
    return replace(rows, blocks=(*rows.blocks[:-1], tuple(tail)), last_conv=round8(rows.last_conv / 2))


def _halved(row: BlockRow) -> BlockRow:
    return replace(row, hidden=round8(row.hidden / 2), out=round8(row.out / 2), se=round8(row.se / 2) if row.se else 0)


def _low_level(rows: NetworkRows) -> tuple[int, int]:
    """Return (stage, layer) of the first block that hands on a map of stride 8."""
    stride = rows.stem_stride
    for stage, blocks in enumerate(rows.blocks):
        for layer, row in enumerate(blocks):
            stride *= row.stride
            if stride == 8:
                return stage, layer
    raise InputError(f"lraspp: needs a network whose blocks reach a map of stride 8; this one reaches {stride}")


def _in_chans(network: NetworkRows | Trunk, in_chans: int) -> int:
    return network.stem.in_channels if isinstance(network, Trunk) else in_chans
