"""What a network costs layer by layer, from its description alone. Only convolutions, linear layers and matrix products
count as MACs; parameters include the affine ones of batch normalisation, not its running statistics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One row of a network's description: a layer, block or cell.

    Attributes:
        name: where it is, such as `stage2.layer1`.
        operation: what it is, in a few words, such as `mbconv k5 e6`.
        out_channels: channels it hands on.
        size: height and width of the square map it hands on, in pixels; 1 after pooling.
        stride: by how much it divides the map.
        params: trainable parameters.
        macs: multiply-accumulates for one image.
    """

    name: str
    operation: str
    out_channels: int
    size: int
    stride: int
    params: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """Parameters and MACs (of one image) that add up."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    size: int,
    groups: int = 1,
    bias: bool = False,
    norm: bool = True,
) -> Cost:
    """Return the cost of a convolution with output maps of `size` x `size`, with its bias or batch norm."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    weights = out_channels * (in_channels // groups) * height * width
    return Cost(weights + bias * out_channels + norm * 2 * out_channels, weights * size * size)


def linear(in_features: int, out_features: int, bias: bool = True) -> Cost:
    """Return the cost of a linear layer used once per image."""
    return Cost(in_features * out_features + bias * out_features, in_features * out_features)


def halved(size: int) -> int:
    """Return the side of a map after a stride of 2 with "same" padding: rounded up."""
    return -(-size // 2)
