import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.p = nn.AdaptiveMaxPool1d(8)
        self.fc = nn.Linear(8, 5)
        self.s = nn.Conv1d(1, 4, 5, stride=3)
        self.fc2 = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.a(x)).mean((2, 3)).unsqueeze(1)
        return self.fc(self.p(x).squeeze(1)) + self.fc2(torch.relu(self.s(x)).amax(2))
