"""torch's own parametrisations: a weight-normalised and a spectrally normalised convolution between plain ones."""

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.wn, self.sn, self.last = (
            weight_norm(nn.Conv2d(16, 64, 3, padding=1)),
            spectral_norm(nn.Conv2d(64, 64, 3, padding=1)),
            nn.Conv2d(64, 24, 1),
        )
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        return self.fc(self.last(self.sn(self.wn(self.stem(x)).relu()).relu()).relu().mean((2, 3)))


def make():
    return Net()
