"""ECAPA-TDNN on (batch, 80 mel bands, frames), as SpeechBrain writes it (Desplanques et al. 2020).

Res2Net blocks of dilated convolutions with reflected ends, squeeze and excite over the frames that count, all blocks
joined, attentive statistics pooling with the whole utterance as context.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class TDNN(nn.Module):
    def __init__(self, inner, outer, kernel=1, dilation=1):
        super().__init__()
        self.pad = dilation * (kernel - 1) // 2
        self.conv, self.norm = nn.Conv1d(inner, outer, kernel, dilation=dilation), nn.BatchNorm1d(outer)

    def forward(self, x):
        if self.pad:
            x = F.pad(x, (self.pad, self.pad), mode="reflect")
        return self.norm(F.relu(self.conv(x)))


class Res2Net(nn.Module):
    def __init__(self, width, scale, dilation):
        super().__init__()
        self.scale = scale
        self.blocks = nn.ModuleList(TDNN(width // scale, width // scale, 3, dilation) for _ in range(scale - 1))

    def forward(self, x):
        y = []
        for i, part in enumerate(torch.chunk(x, self.scale, dim=1)):
            y.append(part if i == 0 else self.blocks[i - 1](part if i == 1 else part + y[-1]))
        return torch.cat(y, dim=1)


class SqueezeExcite(nn.Module):
    def __init__(self, width, squeezed):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(width, squeezed, 1), nn.Conv1d(squeezed, width, 1)

    def forward(self, x, mask):
        mean = (x * mask).sum(dim=2, keepdim=True) / mask.sum(dim=2, keepdim=True)
        return torch.sigmoid(self.conv2(F.relu(self.conv1(mean)))) * x


class Block(nn.Module):
    def __init__(self, inner, outer, dilation):
        super().__init__()
        self.tdnn1, self.res2net = TDNN(inner, outer), Res2Net(outer, 4, dilation)
        self.tdnn2, self.se = TDNN(outer, outer), SqueezeExcite(outer, 16)
        self.shortcut = nn.Conv1d(inner, outer, 1) if inner != outer else None

    def forward(self, x, mask):
        residual = x if self.shortcut is None else self.shortcut(x)
        return self.se(self.tdnn2(self.res2net(self.tdnn1(x))), mask) + residual


class AttentiveStatisticsPooling(nn.Module):
    def __init__(self, channels, attention=16):
        super().__init__()
        self.eps = 1e-12
        self.tdnn, self.conv = TDNN(channels * 3, attention), nn.Conv1d(attention, channels, 1)

    def statistics(self, x, weights):
        mean = (weights * x).sum(2)
        return mean, torch.sqrt((weights * (x - mean.unsqueeze(2)).pow(2)).sum(2).clamp(self.eps))

    def forward(self, x, mask):
        frames = x.shape[-1]
        mean, std = self.statistics(x, mask / mask.sum(dim=2, keepdim=True).float())
        context = torch.cat([x, mean.unsqueeze(2).repeat(1, 1, frames), std.unsqueeze(2).repeat(1, 1, frames)], dim=1)
        scores = self.conv(torch.tanh(self.tdnn(context))).masked_fill(mask == 0, float("-inf"))
        return torch.cat(self.statistics(x, F.softmax(scores, dim=2)), dim=1).unsqueeze(2)


class ECAPA(nn.Module):
    def __init__(self, bands=80, widths=(32, 48, 48), last=96, embedding=24):
        super().__init__()
        self.first = TDNN(bands, widths[0], 5)
        self.blocks = nn.ModuleList(Block(inner, outer, 2 + i) for i, (inner, outer) in enumerate(pairwise(widths)))
        self.mfa = TDNN(sum(widths[1:]), last)
        self.asp, self.asp_norm = AttentiveStatisticsPooling(last), nn.BatchNorm1d(2 * last)
        self.fc = nn.Conv1d(2 * last, embedding, 1)

    def forward(self, x):
        mask = torch.ones_like(x[:, :1])
        x, outputs = self.first(x), []
        for block in self.blocks:
            x = block(x, mask)
            outputs.append(x)
        x = self.mfa(torch.cat(outputs, dim=1))
        return self.fc(self.asp_norm(self.asp(x, mask))).squeeze(2)


def make():
    """Return the model."""
    return ECAPA()


def inputs():
    """Return its inputs."""
    return (torch.randn(1, 80, 40, generator=torch.Generator().manual_seed(1)),)
