"""32 channels in three chunks (11, 11, 10): the sizes follow from the whole at run time; the model still runs, and answers something else."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, c=32, classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU())
        self.a, self.b, self.bn, self.fc = (
            nn.Conv2d(c, c, 3, padding=1),
            nn.Conv2d(c, c, 3, padding=1),
            nn.BatchNorm2d(c),
            nn.Linear(c, classes),
        )

    def mix(self, y):
        a, b, c = y.chunk(3, 1)
        return torch.cat([c, a.flip(-1), b], 1)

    def forward(self, x):
        y = F.relu(self.a(self.stem(x)))
        return self.fc(F.relu(self.bn(self.b(self.mix(y)))).mean((2, 3)))


def make():
    return Net()
