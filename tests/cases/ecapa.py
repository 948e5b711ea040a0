"""ECAPA-TDNN on (batch, 80 mel bands, frames): Res2Net blocks of 1-D convolutions (chunk in one half, split by a stored
width in the other), squeeze and excite, multi-layer aggregation, attentive statistics pooling with global context."""

import torch
import torch.nn.functional as F
from torch import nn


class TDNN(nn.Module):
    """Same-length convolution with reflected ends, as SpeechBrain has it."""

    def __init__(self, i, o, k=1, d=1):
        super().__init__()
        self.pad, self.conv, self.norm = d * (k - 1) // 2, nn.Conv1d(i, o, k, dilation=d), nn.BatchNorm1d(o)

    def forward(self, x):
        if self.pad:
            x = F.pad(x, (self.pad, self.pad), mode="reflect")
        return self.norm(F.relu(self.conv(x)))


class Res2(nn.Module):
    def __init__(self, c, scale, d, split):
        super().__init__()
        self.scale, self.width, self.split = scale, c // scale, split
        self.blocks = nn.ModuleList([TDNN(c // scale, c // scale, 3, d) for _ in range(scale - 1)])

    def forward(self, x):
        y = []
        for i, x_i in enumerate(torch.split(x, self.width, 1) if self.split else torch.chunk(x, self.scale, dim=1)):
            y_i = x_i if i == 0 else self.blocks[i - 1](x_i if i == 1 else x_i + y_i)
            y.append(y_i)
        return torch.cat(y, dim=1)


class SE(nn.Module):
    def __init__(self, c, h):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(c, h, 1), nn.Conv1d(h, c, 1)

    def forward(self, x):
        return torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean(dim=2, keepdim=True))))) * x


class Block(nn.Module):
    def __init__(self, c, d, split):
        super().__init__()
        self.tdnn1, self.res2, self.tdnn2, self.se = TDNN(c, c), Res2(c, 4, d, split), TDNN(c, c), SE(c, c // 4)

    def forward(self, x):
        return self.se(self.tdnn2(self.res2(self.tdnn1(x)))) + x


class ASP(nn.Module):
    def __init__(self, c, att=16):
        super().__init__()
        self.tdnn, self.conv = TDNN(c * 3, att), nn.Conv1d(att, c, 1)

    def forward(self, x):
        L = x.shape[-1]
        mean, std = x.mean(2), (x.var(2, unbiased=False).clamp(1e-12)).sqrt()
        attn = torch.cat([x, mean.unsqueeze(2).repeat(1, 1, L), std.unsqueeze(2).repeat(1, 1, L)], dim=1)
        attn = F.softmax(self.conv(torch.tanh(self.tdnn(attn))), dim=2)
        mean = (attn * x).sum(2)
        std = torch.sqrt((attn * (x - mean.unsqueeze(2)).pow(2)).sum(2).clamp(1e-12))
        return torch.cat((mean, std), dim=1).unsqueeze(2)


class ECAPA(nn.Module):
    def __init__(self, c=64, emb=24):
        super().__init__()
        self.first = TDNN(80, c, 5)
        self.blocks = nn.ModuleList([Block(c, 2, False), Block(c, 3, True)])
        self.mfa = TDNN(2 * c, 96)
        self.asp, self.asp_bn, self.fc = ASP(96), nn.BatchNorm1d(192), nn.Conv1d(192, emb, 1)

    def forward(self, x):
        x, out = self.first(x), []
        for block in self.blocks:
            x = block(x)
            out.append(x)
        return self.fc(self.asp_bn(self.asp(self.mfa(torch.cat(out, dim=1))))).squeeze(2)


def make():
    return ECAPA()


def inputs():
    return (torch.randn(1, 80, 50, generator=torch.Generator().manual_seed(1)),)


NARROW = ["blocks.0.tdnn1.conv"]  # could be narrowed and must not be listed as whole
