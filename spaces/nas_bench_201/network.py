"""The network of NAS-Bench-201: three stages of equal cells with a residual reduction block between each two.

Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", section 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from spaces.candidates import total
from spaces.nas_bench_201.code import EDGES, NODES, edge_name
from spaces.nats_size.network import Parts, Reduction, Unit

STAGES = 3

MakeEdge = Callable[[str, int], nn.Module]
"""Makes what stands on the edge of that name for so many channels."""


class Zero(nn.Module):
    """The operation `none`: nothing goes through, but what is before it stays part of the network, as published."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros like `x`."""
        return x * 0


def operation(name: str, channels: int) -> nn.Module:
    """Return an operation from (N, channels, H, W) to the same shape."""
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return Unit(channels, channels, 1 if name == "nor_conv_1x1" else 3)


class Cell(nn.Module):
    """Four nodes, each the sum of an operation on every node before it; the last one is the output."""

    def __init__(self, channels: int, edge: MakeEdge) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({name: edge(name, channels) for name in (edge_name(*ends) for ends in EDGES)})

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        nodes = [x]
        for target in range(1, NODES):
            inputs = (self.edges[edge_name(source, target)](nodes[source]) for source in range(target))
            nodes.append(total(inputs))
        return nodes[-1]


class CellNetwork(nn.Module):
    """Stem, stages of cells, batch norm and ReLU, global average, linear classifier."""

    def __init__(self, in_chans: int, channels: int, cells: int, num_classes: int, edge: MakeEdge) -> None:
        super().__init__()
        self.stem = Unit(in_chans, channels, 3, relu=False)
        layers: list[nn.Module] = []
        for stage in range(STAGES):
            if stage:
                layers.append(Reduction(channels, 2 * channels, Parts()))
                channels *= 2
            layers += [Cell(channels, edge) for _ in range(cells)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        x = self.layers(self.stem(images))
        logits: Tensor = self.classifier(F.relu(self.norm(x)).mean((2, 3)))
        return logits
