"""ResConv and ResAtt (BossNAS, section 4.1 and its released code), each an entry and a body.

entry:    1x1 to a quarter of the channels, PEG (a depthwise 3x3 with bias that encodes positions and strides), BN
ResConv:  ReLU, 3x3, BN, ReLU, 1x1, BN with gamma 0
ResAtt:   ReLU, attention, BN, ReLU, 1x1, BN with gamma 0
layer:    ReLU(body(entry) + shortcut(entry))
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from spaces.hytra.config import HyTraConfig


@dataclass(frozen=True)
class Style:
    """What all operations of a network share."""

    pooled: bool
    """Shortcuts pool and project; else a strided one is a 3x3 convolution."""
    se: bool
    head_dim: int

    def activation(self) -> nn.Module:
        """Return a new activation: SiLU beside squeeze-and-excitation, else ReLU."""
        return nn.SiLU() if self.se else nn.ReLU()


def style_of(config: HyTraConfig) -> Style:
    """Return the style that the options ask for."""
    return Style(config.version == "retrain", config.se, config.head_dim)


def squeezed(channels: int) -> int:
    """Return the channels inside squeeze-and-excitation: a sixteenth, at least 8."""
    return max(8, channels // 16)


class Attention(nn.Module):
    """Multi-head self-attention over all positions of a map, without position table and without bias."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = channels // head_dim, head_dim
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape; scores are scaled by head_dim^-1/2, weights sum to 1 over keys."""
        qkv = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, self.head_dim))
        query, key, value = qkv.transpose(-2, -1).unbind(1)
        out = F.scaled_dot_product_attention(query, key, value)
        return out.transpose(-2, -1).reshape(x.shape)


class Entry(nn.Module):
    """What brings a map into an operation of `channels` output channels: its shortcut and its reduced main branch."""

    def __init__(self, in_channels: int, channels: int, stride: int, style: Style) -> None:
        super().__init__()
        width = channels // 4
        self.shortcut = _shortcut(in_channels, channels, stride, style)
        self.reduce = nn.Conv2d(in_channels, width, 1, bias=False)
        self.position = nn.Conv2d(width, width, 3, stride, 1, groups=width)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shortcut (N, channels, H', W') and the main branch (N, channels / 4, H', W')."""
        return self.shortcut(x), self.norm(self.position(self.reduce(x)))


def _shortcut(in_channels: int, channels: int, stride: int, style: Style) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if style.pooled:
        pool = [nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)] if stride == 2 else []
        return nn.Sequential(*pool, nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
    kernel = 3 if stride == 2 else 1
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), style.activation())


def make_body(operation: str, channels: int, style: Style, drop_path: float) -> nn.Sequential:
    """Return what maps the main branch (N, channels / 4, H, W) to (N, channels, H, W)."""
    width = channels // 4
    attention = operation == "attention"
    middle = Attention(width, style.head_dim) if attention else nn.Conv2d(width, width, 3, 1, 1, bias=False)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        activation=style.activation(),
        middle=middle,
        middle_norm=nn.BatchNorm2d(width),
        middle_activation=style.activation(),
        expand=nn.Conv2d(width, channels, 1, bias=False),
        expand_norm=nn.BatchNorm2d(channels),
    )
    if style.se and not attention:
        from timm.layers import SEModule

        parts["se"] = SEModule(channels, rd_channels=squeezed(channels))
    if drop_path and not attention:
        from timm.layers import DropPath

        parts["drop_path"] = DropPath(drop_path)
    return nn.Sequential(parts)


class Residual(nn.Module):
    """A layer: one entry and the body of one operation."""

    def __init__(
        self, operation: str, in_channels: int, channels: int, stride: int, style: Style, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.entry = Entry(in_channels, channels, stride, style)
        self.body = make_body(operation, channels, style, drop_path)
        self.activation = style.activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        shortcut, main = self.entry(x)
        out: Tensor = self.activation(self.body(main) + shortcut)
        return out


def make_stem(config: HyTraConfig, in_chans: int, style: Style) -> nn.Sequential:
    """Return the stem: images (N, in_chans, H, W) to (N, stem_channels, H / 4, W / 4), or H, W for small images."""
    kernel, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
    conv = nn.Conv2d(in_chans, config.stem_channels, kernel, stride, kernel // 2, bias=False)
    pool = [nn.MaxPool2d(3, 2, 1)] if config.stem == "imagenet" else []
    return nn.Sequential(conv, nn.BatchNorm2d(config.stem_channels), style.activation(), *pool)


def make_patches(in_channels: int, channels: int, patch: int) -> nn.Sequential:
    """Return what brings the stem's map to a first layer's scale: one depthwise filter over each patch, 1x1, BN."""
    depthwise = nn.Conv2d(in_channels, in_channels, patch, patch, groups=in_channels, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))


def initialise(network: nn.Module) -> None:
    """Set He-normal weights (fan-out) for convolutions, and gamma 0 where an operation joins its shortcut.

    Linear layers and biases keep torch's own, as in the released retraining code.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif name.endswith("expand_norm") and isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
