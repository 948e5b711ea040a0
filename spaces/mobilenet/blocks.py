"""Inverted residuals with squeeze-and-excite and hard-swish (Sandler et al.; Howard et al., section 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spaces.mobilenet.tables import Activation, BlockRow

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hswish": nn.Hardswish,
    "silu": nn.SiLU,
    "none": nn.Identity,
}


def activation(name: Activation) -> nn.Module:
    """Return a new activation; `hswish` is x ReLU6(x + 3) / 6."""
    return _ACTIVATIONS[name]()


def same_conv(in_channels: int, out_channels: int, row: BlockRow, groups: int = 1) -> nn.Conv2d:
    """Return the spatial convolution of `row`, padded so that only its stride shrinks the map."""
    padding = row.kernel // 2 * row.dilation
    return nn.Conv2d(
        in_channels, out_channels, row.kernel, row.stride, padding, row.dilation, groups=groups, bias=False
    )


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from the averages of all: 1x1, ReLU, 1x1, (hard) sigmoid."""

    def __init__(self, channels: int, squeezed: int, gate: str = "hsigmoid") -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.restore = nn.Conv2d(squeezed, channels, 1)
        self.gate: nn.Module = nn.Hardsigmoid() if gate == "hsigmoid" else nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        scale: Tensor = self.gate(self.restore(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return x * scale


class PooledShortcut(nn.Module):
    """Average-pool 3x3 with the block's stride, then cut surplus channels or fill missing ones with zeros."""

    def __init__(self, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, H / stride, W / stride)."""
        x = F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
        return match_channels(x, self.out_channels)


def match_channels(x: Tensor, channels: int) -> Tensor:
    """Cut (N, C, H, W) to the first `channels`, or append channels of zeros."""
    missing = channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x[:, :channels]


def shortcut(in_channels: int, row: BlockRow) -> nn.Module | None:
    """Return what a block of `row` adds to its output; None for nothing."""
    if row.skip == "pool":
        return PooledShortcut(row.out, row.stride)
    identity = row.skip == "identity" and row.stride == 1 and in_channels == row.out
    return nn.Identity() if identity else None


class Bottleneck(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, squeeze-and-excite, linear 1x1 projection, shortcut.

    Without an expansion where `row.hidden` equals `in_channels`: a depthwise-separable convolution.
    """

    def __init__(self, in_channels: int, row: BlockRow) -> None:
        super().__init__()
        hidden = row.hidden
        expands = hidden != in_channels
        self.expand = nn.Conv2d(in_channels, hidden, 1, bias=False) if expands else None
        self.expand_norm = nn.BatchNorm2d(hidden) if expands else None
        self.depthwise = same_conv(hidden, hidden, row, groups=hidden)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.activation = activation(row.activation)
        self.squeeze = SqueezeExcite(hidden, row.se, row.gate) if row.se else None
        self.project = nn.Conv2d(hidden, row.out, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(row.out)
        self.shortcut = shortcut(in_channels, row)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, row.out, H / stride, W / stride)."""
        out: Tensor = x
        if self.expand is not None and self.expand_norm is not None:
            out = self.activation(self.expand_norm(self.expand(out)))
        out = self.activation(self.depthwise_norm(self.depthwise(out)))
        if self.squeeze is not None:
            out = self.squeeze(out)
        out = self.project_norm(self.project(out))
        return out if self.shortcut is None else out + self.shortcut(x)


class ConvBlock(nn.Module):
    """One plain convolution with batch norm, activation, squeeze-and-excite and shortcut."""

    def __init__(self, in_channels: int, row: BlockRow) -> None:
        super().__init__()
        self.conv = same_conv(in_channels, row.out, row)
        self.norm = nn.BatchNorm2d(row.out)
        self.activation = activation(row.activation)
        self.squeeze = SqueezeExcite(row.out, row.se, row.gate) if row.se else None
        self.shortcut = shortcut(in_channels, row)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, row.out, H / stride, W / stride)."""
        out: Tensor = self.activation(self.norm(self.conv(x)))
        if self.squeeze is not None:
            out = self.squeeze(out)
        return out if self.shortcut is None else out + self.shortcut(x)


def block(in_channels: int, row: BlockRow) -> nn.Module:
    """Return the block that `row` describes."""
    return ConvBlock(in_channels, row) if row.operation == "conv" else Bottleneck(in_channels, row)


def initialise(network: nn.Module) -> None:
    """Draw weights: He normal over the fan-out for convolutions, 0.01 for linear layers, zero biases; norms 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
