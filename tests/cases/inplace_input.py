import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)
        self.b = nn.Conv2d(24, 24, 3)
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        x.mul_(2).add_(0.5)
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))
