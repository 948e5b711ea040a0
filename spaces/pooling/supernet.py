"""All placements on one set of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from evaluators.tasks import Task
from spaces.architecture import Architecture
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from spaces.pooling.space import PoolingSpace


class PoolingSupernet(Supernet):
    """The backbone itself: activating an architecture moves its pools or strides, and every weight is shared.

    The first placement of the space is active at the start. Several supernets, each from a call of `Space.supernet`,
    make the balanced mixture of Javan et al., section 3.
    """

    def __init__(self, space: PoolingSpace, task: Task) -> None:
        super().__init__(space, task)
        self.chain, self.positions_of = space.chain, space.positions
        self.network = space.prepared(task)
        self.placed: tuple[int, ...] = ()
        self.activate(next(iter(space)))

    def _activate(self, arch: Architecture) -> None:
        positions = self.positions_of(arch)
        self.chain.place(self.network, self.placed, positions)
        self.placed = positions

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the shared weights themselves: every architecture uses all of them, under the same names."""
        return self.network.state_dict()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of the active placement for images (N, C, H, W)."""
        logits: Tensor = self.network(images)
        return logits
