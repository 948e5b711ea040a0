"""torch's own nn.TransformerEncoder (nn.MultiheadAttention), as in DETR, Mask2Former, SegFormer heads and torchvision's
vit: heads and stream."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=10, dim=64):
        super().__init__()
        self.patch, self.pos = nn.Conv2d(3, dim, 4, 4), nn.Parameter(torch.randn(1, 64, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(dim, classes)

    def forward(self, x):
        return self.fc(self.enc(self.patch(x).flatten(2).transpose(1, 2) + self.pos).mean(1))


def make():
    return Net()


def inputs():
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


NARROW = ["patch", "enc.layers.0.self_attn"]  # could be narrowed and must not be listed as whole
