import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = torch.relu(self.a(x))
        b, c, h, w = x.shape
        x = x.view(b, 4, -1, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return self.fc(torch.relu(self.b(x)).mean((2, 3)))
