"""Restormer (Zamir et al., 2022): attention between channels, gated depthwise convolutions, pixel shuffle.

Heads are viewed by the width of the stream and their number, so that both can only be narrowed together.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.LayerNorm(c)

    def forward(self, x):
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.num_heads, self.temperature = heads, nn.Parameter(torch.linspace(0.6, 1.4, heads).view(heads, 1, 1))
        self.qkv, self.project_out = nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)
        self.qkv_dwconv = nn.Conv2d(3 * c, 3 * c, 3, padding=1, groups=3 * c)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (each.reshape(b, self.num_heads, c // self.num_heads, h * w) for each in (q, k, v))
        attn = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        return self.project_out((attn.softmax(dim=-1) @ v).reshape(b, c, h, w))


class FeedForward(nn.Module):
    def __init__(self, c, factor=2.66):
        super().__init__()
        hidden = int(c * factor)
        self.project_in, self.project_out = nn.Conv2d(c, 2 * hidden, 1), nn.Conv2d(hidden, c, 1)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)

    def forward(self, x):
        x1, x2 = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(x1) * x2)


class Block(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.ffn = Norm(c), Attention(c, heads), Norm(c), FeedForward(c)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Restormer(nn.Module):
    def __init__(self, w=16):
        super().__init__()
        self.patch_embed, self.encoder = nn.Conv2d(3, w, 3, padding=1), Block(w, 2)
        self.down = nn.Sequential(nn.Conv2d(w, w // 2, 3, padding=1), nn.PixelUnshuffle(2))
        self.latent = nn.Sequential(Block(2 * w, 4), Block(2 * w, 4))
        self.up = nn.Sequential(nn.Conv2d(2 * w, 4 * w, 3, padding=1), nn.PixelShuffle(2))
        self.decoder, self.output = Block(2 * w, 2), nn.Conv2d(2 * w, 3, 3, padding=1)

    def forward(self, image):
        skip = self.encoder(self.patch_embed(image))
        x = self.up(self.latent(self.down(skip)))
        return self.output(self.decoder(torch.cat([x, skip], 1))) + image


def make():
    return Restormer()


def inputs():
    return (torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(1)),)
