"""DHVT (NeurIPS 2022): overlapping convolutional embedding, attention with head tokens, feed forward with depthwise
convolution gated from the class token; logits. Shapes computed in Python as in the published code."""

import torch
from torch import nn


class Affine(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(1, c, 1, 1)), nn.Parameter(torch.zeros(1, c, 1, 1))

    def forward(self, x):
        return x * self.alpha + self.beta


class Embed(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.pre, self.post = Affine(3), Affine(dim)
        self.proj = nn.Sequential(
            nn.Conv2d(3, dim // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(dim // 2),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, 2, 1, bias=False),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x):
        x = self.post(self.proj(self.pre(x)))
        return x.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim, num_heads=4):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3, bias=True), nn.Linear(dim, dim)
        self.ht_proj, self.ht_norm, self.act = (
            nn.Linear(dim // num_heads, dim),
            nn.LayerNorm(dim // num_heads),
            nn.GELU(),
        )
        self.pos_embed = nn.Parameter(torch.randn(1, num_heads, dim) * 0.02)

    def forward(self, x):
        B, N, C = x.shape
        head_pos = self.pos_embed.expand(x.shape[0], -1, -1)
        x_ = x.reshape(B, -1, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        x_ = x_.mean(dim=2)
        x_ = self.ht_proj(x_).reshape(B, -1, self.num_heads, C // self.num_heads)
        x_ = self.act(self.ht_norm(x_)).flatten(2)
        x = torch.cat([x, x_ + head_pos], dim=1)
        qkv = self.qkv(x).reshape(B, N + self.num_heads, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(B, N + self.num_heads, C)
        x = self.proj(x)
        cls, patch, ht = torch.split(x, [1, N - 1, self.num_heads], dim=1)
        cls = cls + torch.mean(ht, dim=1, keepdim=True)
        return torch.cat([cls, patch], dim=1)


class DAFF(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden), nn.BatchNorm2d(hidden)
        self.conv3, self.bn3 = nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim)
        self.compress, self.excitation = nn.Linear(dim, dim // 4), nn.Linear(dim // 4, dim)
        self.act = nn.GELU()

    def forward(self, x):
        B, N, C = x.size()
        cls_token, tokens = torch.split(x, [1, N - 1], dim=1)
        x = tokens.reshape(B, int(N**0.5), int(N**0.5), C).permute(0, 3, 1, 2)
        x = self.act(self.bn1(self.conv1(x)))
        x = x + self.act(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        weight = x.flatten(2).mean(dim=2, keepdim=True).transpose(1, 2)
        weight = self.excitation(self.act(self.compress(weight)))
        return torch.cat([cls_token * weight, x.flatten(2).permute(0, 2, 1)], dim=1)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = (
            nn.LayerNorm(dim),
            Attention(dim),
            nn.LayerNorm(dim),
            DAFF(dim, 4 * dim),
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DHVT(nn.Module):
    def __init__(self, dim=48, depth=3, classes=10):
        super().__init__()
        self.patch_embed, self.cls_token = Embed(dim), nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks, self.norm, self.head = (
            nn.ModuleList([Block(dim) for _ in range(depth)]),
            nn.LayerNorm(dim),
            nn.Linear(dim, classes),
        )

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def make():
    return DHVT()


def inputs():
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


NARROW = ["patch_embed.proj.3", "blocks.0.attn.qkv"]  # could be narrowed and must not be listed as whole
