"""DDPM's U-Net: noisy image and integer time step in, noise out; GroupNorm, sinusoidal embedding, attention at 8x8.

Attention as in the published code: 1x1 convolutions, bmm, scale from the width at run time.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def embedding(t, dim):
    half = dim // 2
    freq = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * -(math.log(10000) / (half - 1)))
    arg = t.float()[:, None] * freq[None]
    return torch.cat([arg.sin(), arg.cos()], 1)


def norm(c):
    return nn.GroupNorm(8, c, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, i, o, temb):
        super().__init__()
        self.norm1, self.conv1 = norm(i), nn.Conv2d(i, o, 3, padding=1)
        self.temb_proj = nn.Linear(temb, o)
        self.norm2, self.dropout, self.conv2 = norm(o), nn.Dropout(0.1), nn.Conv2d(o, o, 3, padding=1)
        if i != o:
            self.nin_shortcut = nn.Conv2d(i, o, 1)

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attn(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = norm(c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        h_ = self.norm(x)
        q, k, v = self.q(h_), self.k(h_), self.v(h_)
        b, c, h, w = q.shape
        q = q.reshape(b, c, h * w).permute(0, 2, 1)
        k = k.reshape(b, c, h * w)
        w_ = torch.bmm(q, k) * (int(c) ** (-0.5))
        w_ = F.softmax(w_, dim=2).permute(0, 2, 1)
        h_ = torch.bmm(v.reshape(b, c, h * w), w_).reshape(b, c, h, w)
        return x + self.proj_out(h_)


class DDPM(nn.Module):
    def __init__(self, ch=32, mult=(1, 2), blocks=2):
        super().__init__()
        self.ch = ch
        self.temb = nn.ModuleList([nn.Linear(ch, 4 * ch), nn.Linear(4 * ch, 4 * ch)])
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        widths, cur = [ch], ch
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, m in enumerate(mult):
            stage = nn.Module()
            stage.block, stage.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks):
                stage.block.append(ResBlock(cur, ch * m, 4 * ch))
                cur = ch * m
                if level == 1:
                    stage.attn.append(Attn(cur))
                widths.append(cur)
            if level != len(mult) - 1:
                stage.downsample = nn.Conv2d(cur, cur, 3, 2)
                widths.append(cur)
            self.down.append(stage)
        self.mid1, self.mida, self.mid2 = ResBlock(cur, cur, 4 * ch), Attn(cur), ResBlock(cur, cur, 4 * ch)
        for level, m in reversed(list(enumerate(mult))):
            stage = nn.Module()
            stage.block, stage.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks + 1):
                stage.block.append(ResBlock(cur + widths.pop(), ch * m, 4 * ch))
                cur = ch * m
                if level == 1:
                    stage.attn.append(Attn(cur))
            if level:
                stage.upsample = nn.Conv2d(cur, cur, 3, padding=1)
            self.up.append(stage)
        self.norm_out, self.conv_out = norm(cur), nn.Conv2d(cur, 3, 3, padding=1)

    def forward(self, x, t):
        temb = self.temb[1](F.silu(self.temb[0](embedding(t, self.ch))))
        hs = [self.conv_in(x)]
        for stage in self.down:
            for i, block in enumerate(stage.block):
                h = block(hs[-1], temb)
                if len(stage.attn):
                    h = stage.attn[i](h)
                hs.append(h)
            if hasattr(stage, "downsample"):
                hs.append(stage.downsample(F.pad(hs[-1], (0, 1, 0, 1))))
        h = self.mid2(self.mida(self.mid1(hs[-1], temb)), temb)
        for stage in self.up:
            for i, block in enumerate(stage.block):
                h = block(torch.cat([h, hs.pop()], dim=1), temb)
                if len(stage.attn):
                    h = stage.attn[i](h)
            if hasattr(stage, "upsample"):
                h = stage.upsample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


def make():
    return DDPM()


def inputs():
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([417])
