import torch
from torch import nn


class Blur(nn.Module):
    def __init__(self):
        super().__init__()
        k = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("k", (k[:, None] * k / 16)[None, None])

    def forward(self, x):
        c = x.shape[1]
        return nn.functional.conv2d(x, self.k.expand(c, 1, 3, 3), stride=2, padding=1, groups=c)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)
        self.blur = Blur()
        self.b = nn.Conv2d(24, 24, 3)
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.b(self.blur(torch.relu(self.a(x))))).mean((2, 3)))
