"""The network that shares its weights between all architectures of a space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice
from spaces.space import Space


class Supernet(nn.Module, ABC):
    """One set of weights for every architecture of `space`; one architecture is active at a time.

    A step trains only what the active architecture uses: other parameters keep `grad` None. `extract` cuts an
    architecture out with the weights it inherits; batch-norm statistics of shared layers belong to no architecture in
    particular, so estimate them anew on the cut-out (`compress.core.batch_norm.recalibrate`) before judging it.

    A subclass implements `_activate`, `inherited` and `forward` for `self.active`.
    """

    def __init__(self, space: Space, task: Task) -> None:
        super().__init__()
        self.space = space
        self.task = task
        self.active: Architecture | None = None

    def activate(self, arch: Mapping[str, Choice]) -> None:
        """Let `forward` compute `arch`; an illegal architecture is an InputError and changes nothing."""
        arch = self.space.check(arch)
        self._activate(arch)
        self.active = arch

    @abstractmethod
    def _activate(self, arch: Architecture) -> None:
        """Route `forward` through the parts that the checked `arch` uses."""

    @abstractmethod
    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the state of the checked `arch`'s stand-alone network, out of the shared weights (views are fine)."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of the active architecture for images (N, C, H, W)."""

    def extract(self, arch: Mapping[str, Choice] | None = None) -> nn.Module:
        """Return a stand-alone copy of `arch` (None: the active one) that computes the same, in the same mode."""
        if arch is None and self.active is None:
            raise ValueError("activate an architecture first, or name one")
        checked = self.active if arch is None else self.space.check(arch)
        assert checked is not None
        module = self.space.build(checked, self.task)
        module.load_state_dict(self.inherited(checked))
        device = next(self.parameters()).device
        return module.to(device).train(self.training)
