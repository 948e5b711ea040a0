"""LAMP (Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.criteria import Allocation, unit_criteria, weight_criteria
from compress.criteria.dimap import Dimap, relative_energy
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, energies, matrices
from compress.graph.graph import Group


@weight_criteria.register("lamp")
class Lamp(Dimap):
    """The relative distortion of DIMAP, but with all layers of the model in one pool."""

    allocation: ClassVar[Allocation] = "global"


@unit_criteria.register("lamp")
class LampUnits(UnitCriterion):
    """The share of a unit in the squared weights of those at least as strong."""

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return the share of a unit in the squared weights of all units of its group that are at least as strong.

        As torch-pruning applies LAMP to groups: one energy per unit over all layers, no account of what a unit costs.
        """
        sums = energies(model)
        return {
            group.name: relative_energy(torch.stack([sums.of(part) for part in matrices(group)]).sum(0))
            for group in groups
        }
