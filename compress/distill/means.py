"""What the terms of a loss were, on average over an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Means(nn.Module):
    """Means of scalars over the updates of an epoch; they are in checkpoints, so that a resumed epoch has the same."""

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self._sums: dict[str, Tensor | float] = {}
        self._updates: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in the values of an update, which stay on their device: reading one makes this process wait for it."""
        for name, value in values.items():
            self._updates[name] = self._updates.get(name, 0) + 1
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()

    def read(self) -> dict[str, float]:
        """Return the means by name, each over the updates that had it."""
        return {name: float(value) / self._updates[name] for name, value in self._sums.items()}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the sums and the numbers of updates."""
        return {"sums": {name: float(value) for name, value in self._sums.items()}, "updates": dict(self._updates)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_extra_state` gave."""
        self._sums, self._updates = dict(state["sums"]), dict(state["updates"])
