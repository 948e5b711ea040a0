"""FPGM (He et al., "Filter pruning via geometric median", CVPR 2019): filters that others can replace go first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.criteria import unit_criteria
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, matrices, mean_normalised, named_tensors
from compress.graph.graph import Group, Slice


@unit_criteria.register("fpgm")
class FpgmUnits(UnitCriterion):
    """The distance of a unit's filters from those of all others."""

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return the sum of distances from a unit's rows to those of all other units, over the mean of its group.

        The unit with the least sum is nearest to the geometric median. Distances are taken layer by layer
        over all layers that produce the unit.
        """
        tensors = named_tensors(model)
        scores = {
            group.name: torch.stack([_distances(tensors[part.tensor], part) for part in matrices(group, "out")]).sum(0)
            for group in groups
        }
        return mean_normalised(scores, data.graph)


def _distances(weight: Tensor, part: Slice) -> Tensor:
    positions = part.positions.reshape(len(part.positions), -1).to(weight.device)
    rows = weight.double().movedim(part.dim, 0).flatten(1)[positions].flatten(1)
    return torch.cdist(rows, rows).sum(1).cpu()
