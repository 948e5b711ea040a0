import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Conv2d(3, 32, 4, stride=4)
        self.num_heads = 4
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)
        self.m = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.fc = nn.Linear(32, 5)
        self.register_buffer("mask", torch.full((16, 16), float("-inf")).triu(1))
        self.register_buffer("ids", torch.arange(16))
        self.register_buffer("on", torch.ones(16, dtype=torch.bool))

    def forward(self, x):
        x = torch.relu(self.p(x)).flatten(2).transpose(1, 2)[:, self.ids]
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1) * 0.3 + self.mask).softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
        x = x + self.proj(y)
        x = x + self.m(x)
        return self.fc((torch.relu(x) * self.on[:, None]).mean(1))
