"""Hessian (LeCun et al., "Optimal brain damage", 1990): what a unit's removal adds to the loss, to second order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.criteria import unit_criteria
from compress.criteria.gradients import differentiable, gradients, touched
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, UnitSums, matrices, mean_normalised, per_cost
from compress.graph.graph import Group
from evaluators.tasks import Task


@unit_criteria.register("hessian")
class HessianUnits(UnitCriterion):
    """What a unit's removal adds to the loss, to second order."""

    needs_loss = True

    def unfit(self, task: Task) -> str | None:
        """Return that the task has no loss of drawn targets."""
        if type(task).drawn_loss is Task.drawn_loss and task.has_loss:
            return f"task {task.name} says not how its targets are distributed, as hessian needs; allowed: taylor, obs"
        return super().unfit(task)

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return the sum of h_w x w^2 over a unit's weights (h: Gauss-Newton diagonal), over group's mean and cost.

        For a loss that is a negative log-likelihood the Gauss-Newton matrix is the Fisher matrix. With targets drawn
        from the model's own predictions and a random sign per sample, the square of one gradient of the summed loss
        estimates its diagonal without bias (Hutchinson's trick), so no gradient per sample is needed.

        Raises:
            InputError: there is no data, or the task has no such loss.
        """
        weights = touched(model, groups)
        curvature = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        with differentiable(model, data.task.losing(model)):
            for batch in data.draws("hessian"):
                probe = data.task.drawn_loss(data.task.forward(model, batch), data.generator)
                for name, slope in gradients(probe, weights, data).items():
                    curvature[name] += slope.double().square()
        sums = UnitSums(lambda name: curvature[name] * weights[name].detach().double().square())
        scores = {group.name: torch.stack([sums.of(part) for part in matrices(group)]).sum(0) for group in groups}
        return per_cost(mean_normalised(scores, data.graph), data)
