"""Random: the floor that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from compress.criteria import WeightCriterion, unit_criteria, weight_criteria
from compress.criteria.unit_criterion import ScoringData, UnitCriterion
from compress.graph.graph import Group


@weight_criteria.register("random")
class Random(WeightCriterion):
    """Independent uniform scores from the run's generator."""

    def scores(self, weight: Tensor, generator: Generator) -> Tensor:
        """Return uniform random numbers in [0, 1) of the shape of `weight`."""
        return torch.rand(weight.shape, generator=generator)


@unit_criteria.register("random")
class RandomUnits(UnitCriterion):
    """Independent uniform scores."""

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return independent uniform scores for the units of every group."""
        return {group.name: torch.rand(group.size, generator=data.generator, dtype=torch.float64) for group in groups}
