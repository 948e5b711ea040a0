"""Taylor (Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.criteria import unit_criteria
from compress.criteria.gradients import differentiable, gradients, touched
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, UnitSums, matrices, mean_normalised, per_cost
from compress.graph.graph import Group


@unit_criteria.register("taylor")
class TaylorUnits(UnitCriterion):
    """The first-order change of the loss when a unit's weights go to zero."""

    needs_loss = True

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return the first-order change of the loss when a unit's weights go to zero, over group's mean and cost.

        Per layer and draw of a few samples |sum of w x dL/dw over the unit's weights| (the unit is one group; the
        absolute value, since in a trained network a few hard samples would rule the squares), summed over layers and
        draws.

        Raises:
            InputError: there is no data.
        """
        weights = touched(model, groups)
        scores = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
        with differentiable(model, data.task.losing(model)):
            for batch in data.draws("taylor"):
                loss = data.task.loss(data.task.forward(model, batch), batch)
                slopes = gradients(loss, weights, data)
                sums = UnitSums(lambda name, slopes=slopes: weights[name].detach() * slopes[name])  # type: ignore[misc]
                for group in groups:
                    for part in matrices(group):
                        scores[group.name] += sums.of(part).abs()
        return per_cost(mean_normalised(scores, data.graph), data)
