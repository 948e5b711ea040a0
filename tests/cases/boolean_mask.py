"""Positions picked by a boolean mask over several dimensions (`x[mask]`): DETR-like losses, sparse heads, token pruning."""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(32, 48), nn.Linear(48, 10)

    def forward(self, x):
        y = self.a(x).relu().permute(0, 2, 3, 1)
        mask = x.abs().mean(1) > -1
        return self.fc(self.b(y[mask]).relu().view(x.shape[0], -1, 48).mean(1))


def make():
    return Net()
