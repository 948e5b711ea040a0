"""U-Net of latent diffusion (Rombach et al., 2022): blocks of self-attention, cross-attention to a sequence, GEGLU.

Tokens are viewed by the width of the map that came in, and heads by their number.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, context, heads=4):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, width, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def split(self, x):
        b, n, d = x.shape
        return x.reshape(b, n, self.heads, d // self.heads).permute(0, 2, 1, 3).reshape(b * self.heads, n, -1)

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        x = torch.bmm((torch.bmm(q, k.transpose(-1, -2)) * self.scale).softmax(-1), v)
        b, n, d = x.shape
        x = x.reshape(b // self.heads, self.heads, n, d).permute(0, 2, 1, 3).reshape(b // self.heads, n, -1)
        return self.to_out(x)


class GEGLU(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.proj = nn.Linear(i, 2 * o)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class SpatialTransformer(nn.Module):
    def __init__(self, c, context):
        super().__init__()
        self.norm, self.proj_in, self.proj_out = nn.GroupNorm(8, c, eps=1e-6), nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(c), nn.LayerNorm(c), nn.LayerNorm(c)
        self.attn1, self.attn2 = Attention(c, c), Attention(c, context)
        self.ff = nn.Sequential(GEGLU(c, 4 * c), nn.Linear(4 * c, c))

    def forward(self, x, context):
        b, c, h, w = x.shape
        tokens = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(b, h * w, c)
        tokens = self.attn1(self.norm1(tokens)) + tokens
        tokens = self.attn2(self.norm2(tokens), context) + tokens
        tokens = self.ff(self.norm3(tokens)) + tokens
        return self.proj_out(tokens.reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous()) + x


class LatentUNet(nn.Module):
    def __init__(self, w=32, context=24):
        super().__init__()
        self.conv_in, self.enter = nn.Conv2d(4, w, 3, padding=1), SpatialTransformer(w, context)
        self.down, self.middle = nn.Conv2d(w, 2 * w, 3, 2, 1), SpatialTransformer(2 * w, context)
        self.up, self.leave = nn.Conv2d(2 * w, w, 3, padding=1), SpatialTransformer(2 * w, context)
        self.norm_out, self.conv_out = nn.GroupNorm(8, 2 * w), nn.Conv2d(2 * w, 4, 3, padding=1)

    def forward(self, sample, context):
        skip = self.enter(self.conv_in(sample), context)
        x = self.middle(self.down(skip), context)
        x = self.up(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.leave(torch.cat([x, skip], dim=1), context)
        return self.conv_out(F.silu(self.norm_out(x)))


def make():
    return LatentUNet()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 7, 24, generator=generator)
