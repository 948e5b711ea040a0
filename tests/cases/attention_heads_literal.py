import torch
from torch import nn


class Att(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.q = nn.Linear(d, 32)
        self.k = nn.Linear(d, 32)
        self.v = nn.Linear(d, 32)
        self.o = nn.Linear(32, d)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, 4, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
        return self.o((a @ v).transpose(1, 2).reshape(b, n, -1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Conv2d(3, 32, 4, stride=4)
        self.a = Att()
        self.fc = nn.Linear(32, 5)
        torch.manual_seed(3)
        for p in self.a.parameters():
            p.data.normal_(0, 0.4)

    def forward(self, x):
        x = torch.relu(self.p(x)).flatten(2).transpose(1, 2)
        return self.fc(torch.relu(x + self.a(x)).mean(1))
