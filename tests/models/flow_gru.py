"""Optical flow by a recurrent unit (RAFT, Teed and Deng, 2020): two images, all-pairs correlation, updates in a row.

The context is split by two numbers that the model keeps; correlations are divided by the root of the width.
"""

import torch
from torch import nn


def encoder(out):
    return nn.Sequential(
        nn.Conv2d(3, 32, 7, 2, 3), nn.InstanceNorm2d(32), nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, 2, 1), nn.InstanceNorm2d(32), nn.ReLU(inplace=True), nn.Conv2d(32, out, 1),
    )  # fmt: skip


class ConvGRU(nn.Module):
    def __init__(self, hidden, inputs):
        super().__init__()
        self.convz, self.convr, self.convq = (nn.Conv2d(hidden + inputs, hidden, 3, padding=1) for _ in range(3))

    def forward(self, h, x):
        hx = torch.cat([h, x], dim=1)
        z, r = torch.sigmoid(self.convz(hx)), torch.sigmoid(self.convr(hx))
        q = torch.tanh(self.convq(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * q


class Motion(nn.Module):
    def __init__(self, correlations, out):
        super().__init__()
        self.convc1, self.convc2 = nn.Conv2d(correlations, 48, 1), nn.Conv2d(48, 32, 3, padding=1)
        self.convf1, self.convf2 = nn.Conv2d(2, 32, 7, padding=3), nn.Conv2d(32, 16, 3, padding=1)
        self.conv = nn.Conv2d(48, out - 2, 3, padding=1)

    def forward(self, flow, corr):
        cor = self.convc2(self.convc1(corr).relu()).relu()
        flo = self.convf2(self.convf1(flow).relu()).relu()
        return torch.cat([self.conv(torch.cat([cor, flo], 1)).relu(), flow], 1)


class Raft(nn.Module):
    def __init__(self, side=8, hidden=32, context=32):
        super().__init__()
        self.hidden_dim, self.context_dim = hidden, context
        self.fnet, self.cnet = encoder(32), encoder(hidden + context)
        self.motion, self.gru = Motion(side * side, 40), ConvGRU(hidden, context + 40)
        self.head = nn.Sequential(nn.Conv2d(hidden, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 2, 3, padding=1))

    def forward(self, first, second):
        f1, f2 = self.fnet(first), self.fnet(second)
        b, c, h, w = f1.shape
        corr = torch.matmul(f1.view(b, c, h * w).transpose(1, 2), f2.view(b, c, h * w))
        corr = (corr / c**0.5).view(b, h, w, h * w).permute(0, 3, 1, 2)
        net, inp = torch.split(self.cnet(first), [self.hidden_dim, self.context_dim], dim=1)
        net, inp = torch.tanh(net), torch.relu(inp)
        flow, flows = f1.new_zeros(b, 2, h, w), []
        for _ in range(2):
            net = self.gru(net, torch.cat([inp, self.motion(flow, corr)], dim=1))
            flow = flow + self.head(net)
            flows.append(flow)
        return flows


def make():
    return Raft()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, 32, 32, generator=generator), torch.randn(1, 3, 32, 32, generator=generator)
