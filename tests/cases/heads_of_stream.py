"""Attentions that compute the width of a head from that of the stream and their number of heads (NesT): the stream and
the heads of all blocks on it can only go together."""

import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, c, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.transpose(1, 2).reshape(n, t, c))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.fc = nn.Conv2d(3, 48, 8, 8), nn.Linear(48, 10)
        self.blocks = nn.Sequential(*(Attention(48, 6) for _ in range(3)))

    def forward(self, x):
        return self.fc(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))
