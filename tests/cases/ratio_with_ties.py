"""Four attention blocks whose q and v widths are tied (DDPM's code: the width of v is read from q). Ratio 0.5, uniform:
half of every width should go."""

import torch
from torch import nn


class Attn(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        b, c, h, w = q.shape
        a = torch.bmm(q.reshape(b, c, -1).transpose(1, 2), k.reshape(b, c, -1)).softmax(2)
        return x + self.o(torch.bmm(v.reshape(b, c, -1), a.transpose(1, 2)).reshape(b, c, h, w))


class Net(nn.Module):
    def __init__(self, c=64):
        super().__init__()
        self.stem, self.body, self.fc = (
            nn.Conv2d(3, c, 4, 4),
            nn.Sequential(*[Attn(c) for _ in range(4)]),
            nn.Linear(c, 10),
        )

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def make():
    return Net()
