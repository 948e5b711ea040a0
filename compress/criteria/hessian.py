"""Hessian (LeCun et al., "Optimal brain damage", 1990): what a unit's removal adds to the loss, to second order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from compress.criteria import unit_criteria
from compress.criteria.base import ScoringData, UnitSums, matrices, mean_normalised, per_cost
from compress.criteria.gradients import differentiable, gradients, touched
from compress.graph.graph import Group


@unit_criteria.register("hessian")
def hessian_units(model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
    """Return the sum of h_w x w^2 over a unit's weights (h: Gauss-Newton diagonal), over its group's mean and its cost.

    For cross-entropy the Gauss-Newton matrix is the Fisher matrix. With labels drawn from the model's own
    predictions and a random sign per image, the square of one gradient of the summed loss estimates its diagonal
    without bias (Hutchinson's trick), so no gradient per image is needed.

    Raises:
        InputError: there is no data.
    """
    weights = touched(model, groups)
    curvature = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    with differentiable(model):
        for images, _ in data.draws("hessian"):
            for name, slope in gradients(_probe(model(images), data.generator), weights).items():
                curvature[name] += slope.double().square()
    sums = UnitSums(lambda name: curvature[name] * weights[name].detach().double().square())
    scores = {group.name: torch.stack([sums.of(part) for part in matrices(group)]).sum(0) for group in groups}
    return per_cost(mean_normalised(scores, data.graph), data)


def _probe(logits: Tensor, generator: Generator) -> Tensor:
    """Return the summed loss of one drawn label and one random sign per image."""
    shares = logits.detach().float().softmax(1).cpu()
    labels = torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)
    signs = torch.randint(0, 2, (len(logits),), generator=generator).to(logits) * 2 - 1
    return (signs * nn.functional.cross_entropy(logits, labels, reduction="none")).sum()
