"""Magnitude: small absolute values matter least (Han et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from compress.core.config import Numbers
from compress.criteria import WeightCriterion, unit_criteria, weight_criteria
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, energies, matrices, mean_normalised
from compress.graph.graph import Group


@weight_criteria.register("magnitude")
class Magnitude(WeightCriterion):
    """The absolute value of a weight; uniform over layers unless the recipe says `global`."""

    def scores(self, weight: Tensor, generator: Generator) -> Tensor:
        """Return |w|."""
        return weight.abs()


@unit_criteria.register("magnitude")
class MagnitudeUnits(UnitCriterion):
    """The norm of all weights of a unit."""

    norm: Annotated[Literal[1, 2], Numbers()] = Field(
        2, description="sum of absolute values (1) or root of the squares (2)"
    )

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return the L2 (or L1) norm of all weights of a unit, in every layer it touches, over the mean of its group.

        Group norms as in "DepGraph: towards any structural pruning" (Fang et al. 2023), biases and norms left out.
        """
        sums = energies(model, self.norm)
        scores = {group.name: torch.stack([sums.of(part) for part in matrices(group)]).sum(0) for group in groups}
        if self.norm == 2:
            scores = {name: score.sqrt() for name, score in scores.items()}
        return mean_normalised(scores, data.graph)
