"""Residual 3-D U-Net (Lee et al., 2017): residual blocks with group norm, skips summed, an output at every level."""

import torch
from torch import nn


def conv(i, o, groups=4):
    return nn.Sequential(nn.Conv3d(i, o, 3, padding=1, bias=False), nn.GroupNorm(groups, o))


class Residual(nn.Module):
    """conv - (conv - ELU - conv) + - ELU: the residual is what the first convolution gives."""

    def __init__(self, i, o):
        super().__init__()
        self.conv1 = nn.Sequential(conv(i, o), nn.ELU(inplace=True))
        self.conv2 = nn.Sequential(conv(o, o), nn.ELU(inplace=True))
        self.conv3 = conv(o, o)
        self.act = nn.ELU(inplace=True)

    def forward(self, x):
        out = self.conv1(x)
        residual = out
        out = self.conv3(self.conv2(out))
        out += residual
        return self.act(out)


class Decoder(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.upsample = nn.ConvTranspose3d(i, o, 3, stride=2, padding=1)
        self.block = Residual(o, o)

    def forward(self, skip, x):
        return self.block(self.upsample(x, output_size=skip.size()[2:]) + skip)


class ResidualUNet3D(nn.Module):
    def __init__(self, channels=1, classes=3, width=16, levels=3):
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.encoders = nn.ModuleList(Residual(a, b) for a, b in zip([channels, *widths[:-1]], widths, strict=True))
        self.decoders = nn.ModuleList(Decoder(b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.heads = nn.ModuleList(nn.Conv3d(a, classes, 1) for a in widths[-2::-1])
        self.pool = nn.MaxPool3d(2)

    def forward(self, x):
        maps = []
        for place, encoder in enumerate(self.encoders):
            x = encoder(self.pool(x) if place else x)
            maps.insert(0, x)
        outputs = []
        for decoder, head, skip in zip(self.decoders, self.heads, maps[1:], strict=True):
            x = decoder(skip, x)
            outputs.append(head(x))
        return outputs[::-1]


def make():
    return ResidualUNet3D()


def inputs():
    return (torch.randn(1, 1, 12, 16, 16, generator=torch.Generator().manual_seed(1)),)
