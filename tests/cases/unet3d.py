"""Residual 3-D U-Net: Conv3d, InstanceNorm3d (affine), trilinear and transposed upsampling, deep supervision."""

import torch
import torch.nn.functional as F
from torch import nn


class Res(nn.Module):
    def __init__(self, i, o, stride=1):
        super().__init__()
        self.a, self.na = nn.Conv3d(i, o, 3, stride, 1), nn.InstanceNorm3d(o, affine=True)
        self.b, self.nb = nn.Conv3d(o, o, 3, 1, 1), nn.InstanceNorm3d(o, affine=True)
        self.skip = nn.Conv3d(i, o, 1, stride) if (i, stride) != (o, 1) else nn.Identity()

    def forward(self, x):
        y = F.leaky_relu(self.na(self.a(x)), 0.01)
        return F.leaky_relu(self.nb(self.b(y)) + self.skip(x), 0.01)


class UNet3D(nn.Module):
    def __init__(self, c=8, classes=2):
        super().__init__()
        self.e0, self.e1, self.e2, self.e3 = Res(1, c), Res(c, 2 * c, 2), Res(2 * c, 4 * c, 2), Res(4 * c, 8 * c, 2)
        self.u2, self.d2 = nn.ConvTranspose3d(8 * c, 4 * c, 2, 2), Res(8 * c, 4 * c)
        self.d1 = Res(4 * c + 2 * c, 2 * c)
        self.d0 = Res(2 * c + c, c)
        self.h1, self.h0 = nn.Conv3d(2 * c, classes, 1), nn.Conv3d(c, classes, 1)

    def forward(self, x):
        a = self.e0(x)
        b = self.e1(a)
        d = self.e2(b)
        y = self.e3(d)
        y = self.d2(torch.cat([self.u2(y), d], 1))
        y = self.d1(torch.cat([F.interpolate(y, scale_factor=2, mode="trilinear", align_corners=False), b], 1))
        deep = self.h1(y)
        y = self.d0(torch.cat([F.interpolate(y, scale_factor=2, mode="trilinear", align_corners=False), a], 1))
        return self.h0(y), deep


def make():
    return UNet3D()


def inputs():
    return (torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)),)


NARROW = ["e1.a", "d2.b"]  # could be narrowed and must not be listed as whole
