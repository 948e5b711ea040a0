import torch
from torch import nn


class Att(nn.Module):
    def __init__(self):
        super().__init__()
        self.cfg = {"heads": 4}
        self.scale = 8**-0.5
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)

    @property
    def num_heads(self):
        return self.cfg["heads"]

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, -1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Conv2d(3, 32, 4, stride=4)
        self.a = Att()
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = torch.relu(self.p(x)).flatten(2).transpose(1, 2)
        return self.fc(torch.relu(x + self.a(x)).mean(1))
