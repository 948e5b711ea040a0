"""Layers of the supernet that read a cell's output, with weights for each state that may be part of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PerState(nn.Module):
    """A layer whose weight is put together from those of the states in `selected`, in their order.

    Attributes:
        selected: the states that the map read at the moment consists of.
    """

    def __init__(self, states: Sequence[int], each: int, out: int, std: float, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.selected = tuple(states)
        for state in states:
            weight = nn.Parameter(torch.empty(out, each, *kernel))
            self.register_parameter(f"state{state}", nn.init.normal_(weight, std=std))  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The weight for the selected states."""
        weights: list[Tensor] = [self.get_parameter(f"state{state}") for state in self.selected]
        return torch.cat(weights, 1) if len(weights) > 1 else weights[0]


class PerStateConv(PerState):
    """A 1x1 convolution without bias, drawn like one that reads a single state (He normal by fan-out)."""

    def __init__(self, states: Sequence[int], each: int, out_channels: int) -> None:
        super().__init__(states, each, out_channels, math.sqrt(2 / out_channels), (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, each x selected states, H, W) to (N, out_channels, H, W)."""
        return F.conv2d(x, self.weight)


class PerStateLinear(PerState):
    """A linear layer with a bias."""

    def __init__(self, states: Sequence[int], each: int, out_features: int) -> None:
        super().__init__(states, each, out_features, 0.01, ())
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, each x selected states) to (N, out_features)."""
        return F.linear(x, self.weight, self.bias)
