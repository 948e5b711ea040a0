"""A small MAXIM for images to restore (Tu et al. 2022): gated MLPs over blocks and over a grid of the pixels.

Half of the channels mixes within blocks, the other half across them; each by a spatial gating unit (gMLP), in which
one half of the channels gates the other. Channel attention and convolutions around them, a U of two scales.
"""

import torch
import torch.nn.functional as F
from torch import nn


def blocks_of(x, h, w):
    n, height, width, c = x.shape
    x = x.reshape(n, height // h, h, width // w, w, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, (height // h) * (width // w), h * w, c)


def images_of(x, grid, h, w):
    n, _, _, c = x.shape
    x = x.reshape(n, grid[0], grid[1], h, w, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, grid[0] * h, grid[1] * w, c)


class SpatialGatingUnit(nn.Module):
    """One half of the channels, mixed along `axis`, gates the other."""

    def __init__(self, width, tokens, axis):
        super().__init__()
        self.axis, self.norm, self.mix = axis, nn.LayerNorm(width // 2), nn.Linear(tokens, tokens)
        nn.init.ones_(self.mix.bias)

    def forward(self, x):
        u, v = x.chunk(2, dim=-1)
        v = self.mix(self.norm(v).transpose(-1, self.axis)).transpose(-1, self.axis)
        return u * (v + 1.0)


class GatedMLP(nn.Module):
    """Mixes tokens within blocks (axis -2) or across them (axis -3)."""

    def __init__(self, width, tokens, axis, factor=2):
        super().__init__()
        self.norm, self.proj_in = nn.LayerNorm(width), nn.Linear(width, width * factor)
        self.gate, self.proj_out = SpatialGatingUnit(width * factor, tokens, axis), nn.Linear(width, width)

    def forward(self, x):
        return x + self.proj_out(self.gate(F.gelu(self.proj_in(self.norm(x)))))


class MultiAxisGatedMLP(nn.Module):
    def __init__(self, width, side, block=4, grid=2):
        super().__init__()
        self.block, self.grid = block, grid
        self.norm, self.proj_in = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.global_mlp = GatedMLP(width, grid * grid, -3)
        self.local_mlp = GatedMLP(width, block * block, -2)
        self.proj_out, self.dropout = nn.Linear(2 * width, width), nn.Dropout(0.1)

    def forward(self, x):
        _, h, w, _ = x.shape
        y = F.gelu(self.proj_in(self.norm(x)))
        u, v = torch.split(y, y.shape[-1] // 2, dim=-1)
        cell = h // self.grid, w // self.grid
        u = images_of(self.global_mlp(blocks_of(u, *cell)), (self.grid, self.grid), *cell)
        grid = h // self.block, w // self.block
        v = images_of(self.local_mlp(blocks_of(v, self.block, self.block)), grid, self.block, self.block)
        return x + self.dropout(self.proj_out(torch.cat([u, v], dim=-1)))


class ChannelAttentionBlock(nn.Module):
    """RCAB: norm, convolutions, squeeze and excite."""

    def __init__(self, width, reduction=4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.down, self.up = nn.Linear(width, width // reduction), nn.Linear(width // reduction, width)

    def forward(self, x):
        y = self.norm(x).permute(0, 3, 1, 2)
        y = self.conv2(F.leaky_relu(self.conv1(y), 0.2)).permute(0, 2, 3, 1)
        return x + y * torch.sigmoid(self.up(F.relu(self.down(y.mean((1, 2), keepdim=True)))))


class Stage(nn.Module):
    def __init__(self, width, side):
        super().__init__()
        self.mixer, self.attention = MultiAxisGatedMLP(width, side), ChannelAttentionBlock(width)

    def forward(self, x):
        return self.attention(self.mixer(x))


class Maxim(nn.Module):
    def __init__(self, width=16, side=16):
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.encoder, self.down = Stage(width, side), nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.bottleneck = Stage(2 * width, side // 2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.fuse, self.decoder = nn.Linear(2 * width, width), Stage(width, side)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image):
        skip = self.encoder(self.conv_in(image).permute(0, 2, 3, 1))
        x = self.bottleneck(self.down(skip.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        x = self.up(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.decoder(self.fuse(torch.cat([x, skip], dim=-1)))
        return image + self.conv_out(x.permute(0, 3, 1, 2))


def make():
    """Return the model."""
    return Maxim()


def inputs():
    """Return its inputs."""
    return (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)),)
