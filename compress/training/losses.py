"""The losses of a run's updates, which are read seldom."""

from __future__ import annotations

import torch
from torch import Tensor


class Losses:
    """Losses that stay on the device until several are read at once: reading one makes this process wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._every, self._pending = _reads(device), list[Tensor]()

    def add(self, loss: Tensor) -> None:
        """Take in the loss of an update."""
        self._pending.append(loss)

    @property
    def due(self) -> bool:
        """Whether there are so many that they should be read."""
        return len(self._pending) >= self._every

    def read(self) -> list[float]:
        """Return those that were not read yet."""
        if not self._pending:
            return []
        losses: list[float] = torch.stack(self._pending).tolist()
        self._pending.clear()
        return losses


def _reads(device: torch.device) -> int:
    """Return after how many updates the losses are read; at each reading a GPU catches up with this process."""
    return 1 if device.type == "cpu" else 50
