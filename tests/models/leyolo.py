"""LeYOLO's backbone, pyramid and heads (Hollard et al. 2024), with boxes decoded around anchor points."""

import torch
from torch import nn

from spaces.registry import open_preset


class Heads(nn.Module):
    """What a detector predicts at every anchor point."""

    def __init__(self) -> None:
        super().__init__()
        space, arch = open_preset("leyolo", "digits-small", {"neck_depths": [1, 2]})
        self.detector = space.build(arch or {}, space.task(5, 3, 64))

    def forward(self, images):
        return self.detector.heads(images)


def make():
    return Heads()


def inputs():
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
