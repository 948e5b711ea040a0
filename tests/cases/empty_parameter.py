import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)
        self.b = nn.Conv2d(24, 24, 3, padding=1)
        self.n = nn.BatchNorm2d(24, affine=False)
        self.o = nn.BatchNorm2d(24, track_running_stats=False)
        self.w = nn.Parameter(torch.randn(16, 24).t())
        self.e = nn.Parameter(torch.empty(0))
        self.fc = nn.Linear(16, 5)
        self.alias = self.b
        self.register_buffer("f", torch.polar(torch.ones(16), torch.arange(16.0)))
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        x = torch.relu(self.o(self.alias(torch.relu(self.n(self.a(x)))))).mean((2, 3)) @ self.w
        y = torch.view_as_real(torch.view_as_complex(x.reshape(-1, 8, 2)) * self.f[:8]).flatten(1)
        return self.fc(torch.relu(y))
