"""Nets in which half of the units are exactly zero: removing them must not change the output at all."""

import torch
from torch import nn


class Heads(nn.Module):
    """A two-block attention model whose number of heads is in a configuration dictionary; heads 0 and 2 are zero."""

    def __init__(self):
        super().__init__()
        self.cfg = {"heads": 4}
        self.p = nn.Conv2d(3, 32, 4, stride=4)
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)
        self.fc = nn.Linear(32, 5)
        with torch.no_grad():
            for t in (self.qkv.weight.view(3, 4, 8, 32), self.qkv.bias.view(3, 4, 8)):
                t.normal_(0, 0.4)
                t[:, [0, 2]] = 0
            self.proj.weight.view(32, 4, 8)[:, [0, 2]] = 0

    def forward(self, x):
        x = torch.relu(self.p(x)).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.cfg["heads"], -1).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * 0.35).softmax(-1) @ v
        return self.fc(torch.relu(x + self.proj(y.transpose(1, 2).reshape(b, n, -1))).mean(1))


class Shift(nn.Module):
    """Temporal shift: an eighth of the channels moves up, an eighth down; half of all channels are zero, not evenly."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 24, 3, padding=1)
        self.fc = nn.Linear(24, 5)
        with torch.no_grad():
            self.a.weight[16:] = 0
            self.a.bias[16:] = 0
            self.b.weight[:, 16:] = 0

    def forward(self, x):
        x = torch.relu(self.a(x))
        f = x.shape[1] // 8
        y = torch.zeros_like(x)
        y[:, :f, :-1] = x[:, :f, 1:]
        y[:, f : 2 * f, 1:] = x[:, f : 2 * f, :-1]
        y[:, 2 * f :] = x[:, 2 * f :]
        return self.fc(torch.relu(self.b(y)).mean((2, 3)))


class Shuffle(nn.Module):
    """Channel shuffle in 4 groups, written with the number 4; the last two groups are zero."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 24, 3, padding=1)
        self.fc = nn.Linear(24, 5)
        with torch.no_grad():
            self.a.weight[16:] = 0
            self.a.bias[16:] = 0
            self.b.weight.view(24, 8, 4, 3, 3)[:, :, 2:] = 0

    def forward(self, x):
        x = torch.relu(self.a(x))
        b, c, h, w = x.shape
        x = x.view(b, 4, -1, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return self.fc(torch.relu(self.b(x)).mean((2, 3)))


class Scale(nn.Module):
    """Attention that takes its scale from the width of a head; half of each head's query and key width is zero."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.p = nn.Conv2d(3, 32, 4, stride=4)
        self.q = nn.Linear(32, 32)
        self.k = nn.Linear(32, 32)
        self.v = nn.Linear(32, 32)
        self.proj = nn.Linear(32, 32)
        self.fc = nn.Linear(32, 5)
        with torch.no_grad():
            for m in (self.q, self.k):
                m.weight.view(4, 8, 32).normal_(0, 0.4)[:, 4:] = 0
                m.bias.view(4, 8)[:, 4:] = 0

    def forward(self, x):
        x = torch.relu(self.p(x)).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.num_heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (q @ k.transpose(-2, -1) / k.size(-1) ** 0.5).softmax(-1) @ v
        return self.fc(torch.relu(x + self.proj(y.transpose(1, 2).reshape(b, n, -1))).mean(1))
