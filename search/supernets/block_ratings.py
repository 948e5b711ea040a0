"""What an architecture is worth by the ratings of its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from compress.core.errors import InputError
from evaluators.candidates.evaluator import Metrics
from evaluators.datasets import Data
from search.supernets.rating import Rater
from spaces.architecture import Architecture
from spaces.supernet import SupernetBlock

METRIC = "bootstrap_loss"
"""Sum of the losses of an architecture's blocks; lower is better."""


class BlockRater(Rater):
    """Adds up what block-wise training has found; no network is run."""

    def __init__(self, blocks: Sequence[SupernetBlock], losses: Sequence[Mapping[str, float]]) -> None:
        """`losses` of each block's paths by their code."""
        self.blocks, self.losses = blocks, losses

    def metrics(self, data: Data) -> tuple[str, ...]:
        """Return the one metric."""
        return (METRIC,)

    def direction(self, metric: str, data: Data) -> Literal["maximize", "minimize"]:
        """Return that a lower loss is better."""
        return "minimize" if metric == METRIC else super().direction(metric, data)

    def free(self, arch: Architecture) -> Metrics:
        """Return the sum over blocks; InputError for a path that was not rated."""
        total = 0.0
        for number, (block, losses) in enumerate(zip(self.blocks, self.losses, strict=True), 1):
            code = block.code(arch)
            if code not in losses:
                some = ", ".join(list(losses)[:3])
                raise InputError(
                    f"block {number} of {len(self.blocks)}: path {code} was not rated, and so {METRIC} of the "
                    f"architecture is not known; rated were the {len(losses)} paths that go on from the best of the "
                    f"blocks before, such as {some}"
                )
            total += losses[code]
        return {METRIC: total}

    def rate(self, arch: Architecture, data: Data) -> Metrics:
        """Return what `free` does."""
        return self.free(arch)
