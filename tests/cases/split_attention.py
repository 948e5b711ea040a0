"""A convolution in two large groups, whose halves are weighed against each other (ResNeSt): groups cannot go, but
channels of both can."""

import torch
from torch import nn


class Split(nn.Module):
    def __init__(self, c, radix=2):
        super().__init__()
        self.radix = radix
        self.conv, self.bn = nn.Conv2d(c, c * radix, 3, padding=1, groups=radix), nn.BatchNorm2d(c * radix)
        self.fc1, self.fc2 = nn.Conv2d(c, 8, 1), nn.Conv2d(8, c * radix, 1)

    def forward(self, x):
        n, _, h, w = x.shape
        x = torch.relu(self.bn(self.conv(x)))
        x = x.reshape(n, self.radix, x.shape[1] // self.radix, h, w)
        y = self.fc2(torch.relu(self.fc1(x.sum(1).mean((2, 3), keepdim=True))))
        y = y.view(n, self.radix, -1, 1, 1).softmax(1)
        return (x * y).sum(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.split = nn.Conv2d(3, 24, 3, 2, 1), Split(24)
        self.b, self.fc = nn.Conv2d(24, 16, 1), nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.b(self.split(torch.relu(self.a(x))))).mean((2, 3)))
