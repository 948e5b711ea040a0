"""The network that shares its weights between all architectures of a space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice
from spaces.space import Space


class SupernetBlock(nn.Module, ABC):
    """A part of a supernet that is trained by itself, on what the parts before it hand on.

    It holds the supernet's own modules. A *path* names the choices of this block and of all blocks before it, so that
    a path of the last block is an architecture.

    Attributes:
        outputs: the widths that its features may have (C'), each with how many times as large as on the block's
            smallest maps (in pixels a side) its maps are.
    """

    outputs: Mapping[int, int]

    @abstractmethod
    def paths(self, before: Mapping[str, Choice]) -> Sequence[Mapping[str, Choice]]:
        """Return all paths that go on from `before`, a path of the block before (the first block: nothing)."""

    @abstractmethod
    def code(self, path: Mapping[str, Choice]) -> str:
        """Return what is published for this block's part of a path, or of an architecture; others have another."""

    @abstractmethod
    def activate(self, path: Mapping[str, Choice]) -> None:
        """Let `forward` compute this block's part of a path."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, C, H, W), the images for the first block, to those of the next (N, C', H', W').

        What it is given stays as it is.
        """


class Supernet(nn.Module, ABC):
    """One set of weights for every architecture of `space`; one architecture is active at a time.

    A step trains only what the active architecture uses: other parameters keep `grad` None. `extract` cuts an
    architecture out with the weights it inherits; batch-norm statistics of shared layers belong to no architecture in
    particular, so estimate them anew on the cut-out (`compress.core.batch_norm.recalibrate`) before judging it.

    A subclass implements `_activate`, `inherited` and `forward` for `self.active`. Methods that mix choices need
    `mixtures` and `_mix` as well (and, to weigh costs, `expected_macs`), those that train block by block `blocks`.
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
        """Return the outputs (N, num_outputs) of the active architecture for images (N, C, H, W)."""

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

    def members(self, arch: Architecture) -> Sequence[Supernet]:
        """Return the supernets that hold weights of `arch`; a mixture of supernets has several."""
        return (self,)

    # Choices in proportion.

    def mixtures(self) -> Mapping[str, tuple[Choice, ...]]:
        """Return what can be mixed, in a fixed order: a decision or an edge of a cell, and its candidates."""
        raise InputError(f"space {self.space.name}: its supernet cannot mix choices")

    def mix(self, weights: Mapping[str, Tensor]) -> None:
        """Let `forward` add up the outputs of candidates in proportion, until the next `activate`.

        A candidate whose weight is exactly 0 is not computed, so its parameters keep `grad` None; its weight gets the
        gradient 0.

        Args:
            weights: for every name of `mixtures` one number for each candidate, (candidates,); gradients flow to them.
        """
        candidates = self.mixtures()
        expected = {name: (len(choices),) for name, choices in candidates.items()}
        given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if given != expected:
            raise ValueError(f"weights of shapes {expected} are needed; got {given}")
        computed = iter(torch.cat([weights[name].detach() for name in candidates]).ne(0).tolist())
        self._mix(
            {
                name: {
                    choice: weight
                    for choice, weight in zip(choices, weights[name].unbind(), strict=True)
                    if next(computed)
                }
                for name, choices in candidates.items()
            }
        )
        self.active = None

    def _mix(self, weights: Mapping[str, Mapping[Choice, Tensor]]) -> None:
        """Do what `mix` does, with the scalar weights of the candidates to compute; only needed with `mixtures`."""
        raise NotImplementedError

    def decode(self, weights: Mapping[str, Tensor]) -> Architecture:
        """Return the architecture that the strengths of candidates, (candidates,) each, stand for.

        Each decision takes its strongest choice, the first of equal ones; one that is not mixed its first.
        """
        candidates = self.mixtures()
        strongest = {name: choices[int(torch.argmax(weights[name]))] for name, choices in candidates.items()}
        return self.space.complete(strongest, lambda decision: decision.choices[0])

    def expected_macs(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the MACs of one image, a scalar, in expectation over candidates that are drawn independently.

        Args:
            weights: the probabilities, (candidates,) for every name of `mixtures`; gradients flow to them.
        """
        raise InputError(f"space {self.space.name}: its supernet cannot weigh the MACs of mixed choices")

    # Block by block.

    def blocks(self) -> Sequence[SupernetBlock]:
        """Return the parts that can be trained one after the other, in their order."""
        raise InputError(f"space {self.space.name}: its supernet has no blocks that could be trained one by one")
