"""A reader of text lines (batch, 1, height, width) (CRNN, Shi et al. 2017): convolutions, then LSTMs in two directions.

Columns of the last map are the steps; the recurrent layers' sizes follow what feeds them and their own.
"""

import torch
import torch.nn.functional as F
from torch import nn


class BidirectionalLSTM(nn.Module):
    def __init__(self, inner, hidden, outer):
        super().__init__()
        self.rnn, self.embedding = nn.LSTM(inner, hidden, bidirectional=True), nn.Linear(hidden * 2, outer)

    def forward(self, x):
        recurrent, _ = self.rnn(x)
        steps, batch, width = recurrent.size()
        return self.embedding(recurrent.view(steps * batch, width)).view(steps, batch, -1)


class CRNN(nn.Module):
    def __init__(self, classes=11, hidden=24):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(24, 32, (4, 3), padding=(0, 1)), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.rnn = nn.Sequential(BidirectionalLSTM(32, hidden, hidden), BidirectionalLSTM(hidden, hidden, classes))

    def forward(self, image):
        columns = self.cnn(image).squeeze(2).permute(2, 0, 1)
        return F.log_softmax(self.rnn(columns), dim=2)


def make():
    """Return the model."""
    return CRNN()


def inputs():
    """Return its inputs."""
    return (torch.randn(1, 1, 16, 32, generator=torch.Generator().manual_seed(1)),)
