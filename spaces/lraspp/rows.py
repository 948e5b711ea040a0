"""A segmentation network as a table of rows, and what it costs without building it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.layers import Cost, Layer, conv, linear
from spaces.mobilenet.tables import BlockRow, NetworkRows, round8, stage_layers


@dataclass(frozen=True)
class SegmenterRows:
    """A whole network.

    Attributes:
        backbone: stem, stages and last convolution, with strides beyond the output stride turned into dilations; its
            classifier is not part of the network.
        low: (stage, layer), from 0, of the block whose finer map the head takes beside the last one.
        features: channels of the head.
    """

    backbone: NetworkRows
    low: tuple[int, int]
    features: int

    @property
    def low_channels(self) -> int:
        """Channels of the finer map."""
        stage, layer = self.low
        return self.backbone.blocks[stage][layer].out


def segmenter_rows(
    backbone: NetworkRows, features: int = 128, output_stride: int = 16, half_tail: bool = False
) -> SegmenterRows:
    """Return the network on a MobileNet (Howard et al. 2019, section 6.4 and figure 10).

    Args:
        backbone: the MobileNet.
        features: channels of the head, 128 or 256 in the paper.
        output_stride: of the last map; the finer one has half of it. 16 in the paper.
        half_tail: halve the channels from the last stage on (the paper's RF2).

    Raises:
        InputError: no block hands on a map of that stride.
    """
    rows = dilated(halved_tail(backbone) if half_tail else backbone, output_stride)
    return SegmenterRows(rows, _low_level(rows, output_stride // 2), features)


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


def _low_level(rows: NetworkRows, wanted: int) -> tuple[int, int]:
    """Return (stage, layer) of the first block that hands on a map of stride `wanted`."""
    stride = rows.stem_stride
    for stage, blocks in enumerate(rows.blocks):
        for layer, row in enumerate(blocks):
            stride *= row.stride
            if stride == wanted:
                return stage, layer
    raise InputError(f"lraspp: needs blocks that hand on a map of stride {wanted}; these reach {stride}")


def layers(rows: SegmenterRows, task: Task) -> list[Layer]:
    """Describe the whole network; `params` and `macs` add up to exactly those of `LRASPP(rows, task)`."""
    backbone = rows.backbone
    found = stage_layers(backbone, task)
    high, low = found[-1].size, found[1 + sum(map(len, backbone.blocks[: rows.low[0]])) + rows.low[1]].size
    wide, features, classes = backbone.last_conv, rows.features, task.num_outputs
    parts: list[tuple[str, str, int, int, Cost]] = [
        ("last", "conv k1", wide, high, conv(found[-1].out_channels, wide, 1, high)),
        ("head.project", "conv k1", features, high, conv(wide, features, 1, high)),
        ("head.gate", "gate", features, 1, linear(wide, features, bias=False)),
    ]
    for name, channels in (("high", features), ("low", rows.low_channels)):
        cost = conv(channels, classes, 1, low, bias=True, norm=False)
        parts.append((f"head.{name}_classifier", "conv k1", classes, low, cost))
    return found + [
        Layer(name, operation, out, size, 1, cost.params, cost.macs) for name, operation, out, size, cost in parts
    ]
