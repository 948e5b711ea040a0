"""U-Net of diffusion models (Ho et al., 2020; Dhariwal and Nichol, 2021): a noisy image and its integer step in.

Residual blocks take the embedded step as a shift (on the way down) or as scale and shift after the second group norm
(in the middle and on the way up); attention of several heads at the low resolution; skips concatenated.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def timestep_embedding(steps, dim, max_period=10000):
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=steps.device) / half)
    args = steps[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


def norm(channels):
    return nn.GroupNorm(8, channels)


class ResBlock(nn.Module):
    def __init__(self, i, o, emb, scale_shift):
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(norm(i), nn.SiLU(), nn.Conv2d(i, o, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * o if scale_shift else o))
        self.out_layers = nn.Sequential(norm(o), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(o, o, 3, padding=1))
        self.skip = nn.Identity() if i == o else nn.Conv2d(i, o, 1)

    def forward(self, x, emb):
        h = self.in_layers(x)
        emb_out = self.emb_layers(emb).type(h.dtype)
        while len(emb_out.shape) < len(h.shape):
            emb_out = emb_out[..., None]
        if self.scale_shift:
            out_norm, out_rest = self.out_layers[0], self.out_layers[1:]
            scale, shift = torch.chunk(emb_out, 2, dim=1)
            h = out_rest(out_norm(h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb_out)
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.num_heads = heads
        self.norm, self.qkv = norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        qkv = self.qkv(self.norm(x))
        bs, width, length = qkv.shape
        ch = width // (3 * self.num_heads)
        q, k, v = qkv.reshape(bs * self.num_heads, ch * 3, length).split(ch, dim=1)
        scale = 1 / math.sqrt(math.sqrt(ch))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        a = torch.einsum("bts,bcs->bct", weight, v)
        h = self.proj_out(a.reshape(bs, -1, length))
        return (x + h).reshape(b, c, *spatial)


class Down(nn.Conv2d):
    def __init__(self, c):
        super().__init__(c, c, 3, stride=2, padding=1)


class Up(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.Sequential):
    """Layers of which residual blocks take the embedding as well."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class DiffusionUNet(nn.Module):
    def __init__(self, width=32, mult=(1, 2), blocks=1, heads=4, attention=(1,)):
        super().__init__()
        self.width, emb = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        ch, widths = width, [width]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(3, width, 3, padding=1))])
        for level, m in enumerate(mult):
            for _ in range(blocks):
                layers = [ResBlock(ch, m * width, emb, scale_shift=False)]
                ch = m * width
                self.input_blocks.append(Stage(*layers, *[AttentionBlock(ch, heads)] * (level in attention)))
                widths.append(ch)
            if level != len(mult) - 1:
                self.input_blocks.append(Stage(Down(ch)))
                widths.append(ch)
        middle = ResBlock(ch, ch, emb, True), AttentionBlock(ch, heads), ResBlock(ch, ch, emb, True)
        self.middle_block = Stage(*middle)
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(mult))):
            for i in range(blocks + 1):
                layers = [ResBlock(ch + widths.pop(), m * width, emb, scale_shift=True)]
                ch = m * width
                layers += [AttentionBlock(ch, heads)] * (level in attention)
                self.output_blocks.append(Stage(*layers, *[Up(ch)] * (level > 0 and i == blocks)))
        self.out = nn.Sequential(norm(ch), nn.SiLU(), nn.Conv2d(ch, 3, 3, padding=1))

    def forward(self, image, step):
        emb = self.time_embed(timestep_embedding(step, self.width))
        h, skips = image, []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)


def make():
    return DiffusionUNet()


def inputs():
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([417])
