"""Structured optimal brain surgeon (Hassibi and Stork 1993; ZipLM, Kurtic et al., NeurIPS 2023).

A unit is worth what the layers that read it lose of their outputs without it, after the best change of all their other
weights. For a layer y = W x with H the second moments of x (centred where a bias is refitted, damped) and P = H^-1, and
the columns S of a unit:

    loss = tr(W_S (P_SS)^-1 W_S^T)
    W -= W_S (P_SS)^-1 P_S;  P -= P_:S (P_SS)^-1 P_S:      once it is gone

So units are removed one after the other, the least loss first, and of two that say the same the second is dear once
the first is gone. A loss counts as a share of the energy of the layer's output, summed over the layers that read the
unit: so groups can be compared. In large groups a few units go at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.core.modes import evaluating
from compress.criteria import unit_criteria
from compress.criteria.consumers import Reader, matrix, readers
from compress.criteria.second_moments import Moments, second_moments
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, UnitSums, energies, matrices, per_cost
from compress.graph.fold import foldable_pairs
from compress.graph.graph import Group, Slice

AT_ONCE = 1 / 64
"""Share of the units left that may go at once, before the others are judged anew."""


@unit_criteria.register("obs")
class ObsUnits(UnitCriterion):
    """What the layers that read a unit lose without it, after the best change of their other weights."""

    damp: float = Field(1e-2, gt=0, description="added to the diagonal of second moments, as a share of its mean")

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return the relative loss of outputs that each unit's removal adds, in the best order, over its cost.

        A group that no plain layer reads (the width of queries and keys), or one of more than 5,000 inputs, goes by its
        share of its layers' energy.

        Raises:
            InputError: there is no data.
        """
        if data.batches is None:
            next(data.draws("obs"))  # raises the sentence for that
        layers = readers(model)
        wanted = {part.layer for group in groups for part in _read_by(group) if part.layer in layers}
        with evaluating(model), torch.no_grad():
            found = second_moments(model, wanted, data)
            norms = _norm_scales(model, data)
        scores, sums = {}, energies(model)
        for group in groups:
            consumers = [
                each
                for part in _read_by(group)
                if part.layer in found
                for each in _consumers(layers[part.layer], part, found[part.layer], norms.get(part.layer), self.damp)
            ]
            scores[group.name] = losses(consumers, group.size) if consumers else _shares(group, sums)
        return per_cost(scores, data)


@dataclass
class Consumer:
    """A layer (or one group of its channels) that reads the units of a group: W (o, d), P (d, d), columns (units, k).

    `energy` is that of its output.
    """

    weight: Tensor
    inverse: Tensor
    columns: Tensor
    energy: float

    def losses(self) -> Tensor:
        """Return the relative loss of each unit's removal (units,)."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        read = self.weight[:, self.columns].transpose(0, 1)  # (units, o, k)
        inner = torch.linalg.solve(blocks, read.transpose(1, 2))
        lost: Tensor = (inner.transpose(1, 2) * read).sum((1, 2)) / max(self.energy, 1e-30)
        return lost

    def without(self, gone: Tensor) -> Consumer:
        """Return the consumer once some units (by number) are gone and its other weights have made up for them."""
        stay = torch.ones(len(self.columns), dtype=torch.bool, device=gone.device)
        stay[gone] = False
        out = self.columns[gone].flatten()
        left = torch.ones(len(self.inverse), dtype=torch.bool, device=gone.device)
        left[out] = False
        among = torch.linalg.solve(self.inverse[out][:, out], self.inverse[out][:, left])
        weight = self.weight[:, left] - self.weight[:, out] @ among
        inverse = self.inverse[left][:, left] - self.inverse[left][:, out] @ among
        renumbered = left.cumsum(0) - 1
        return Consumer(weight, inverse, renumbered[self.columns[stay]], self.energy)


def losses(consumers: Sequence[Consumer], units: int) -> Tensor:
    """Return what removing each of a group's units adds to the loss, when its turn comes; (units,) float64.

    The unit that loses least goes first; none is worth less than one that went before it.
    """
    found = torch.zeros(units, dtype=torch.float64)
    present = torch.arange(units)
    highest, parts = 0.0, list(consumers)
    while len(present):
        each = torch.stack([part.losses().cpu() for part in parts]).sum(0)
        order = each.argsort(stable=True)[: max(1, int(len(present) * AT_ONCE))]
        for number in order.tolist():
            highest = max(highest * (1 + 1e-12), float(each[number]))
            found[present[number]] = highest
        if len(order) == len(present):
            break
        parts = [part.without(order.to(part.columns.device)) for part in parts]
        stay = torch.ones(len(present), dtype=torch.bool)
        stay[order] = False
        present = present[stay]
    return found


def _read_by(group: Group) -> list[Slice]:
    return [part for part in matrices(group, "in") if part.dim == 1 and part.tensor.endswith(".weight")]


def _consumers(layer: Reader, part: Slice, moments: Moments, scale: Tensor | None, damp: float) -> list[Consumer]:
    """Return the layer as consumers of a group, one for each of its own groups of channels."""
    weight = matrix(layer)
    if scale is not None:
        weight = weight * scale.reshape(weight.shape[0], -1, 1)
    kernel = weight.shape[2] // layer.weight.shape[1]
    places = part.positions.reshape(len(part.positions), -1, 1).to(weight.device)
    columns = (places * kernel + torch.arange(kernel, device=weight.device)).flatten(1)
    found = []
    for mine, hessian in zip(weight, moments.centred(), strict=True):
        energy = float(((mine @ hessian) * mine).sum())
        diagonal = hessian.diagonal()
        damped = hessian + torch.diag((damp * diagonal.mean()).clamp(min=1e-12).expand(len(diagonal)))
        found.append(Consumer(mine, torch.linalg.inv(damped), columns, energy))
    return found


def _norm_scales(model: nn.Module, data: ScoringData) -> dict[str, Tensor]:
    """Return layer -> what the batch norm that alone reads it multiplies each output by."""
    assert data.batches is not None
    few = next(iter(data.batches())).to(data.device, copy=True).part(0, 2)
    scales = {}
    for layer, name in foldable_pairs(model, few.inputs):
        norm = model.get_submodule(name)
        assert isinstance(norm, _BatchNorm) and norm.running_var is not None
        weight = 1.0 if norm.weight is None else norm.weight.detach().double()
        scales[layer] = weight / (norm.running_var.double() + norm.eps).sqrt()
    return scales


def _shares(group: Group, sums: UnitSums) -> Tensor:
    """Return each unit's share of the energy of the layers that give it."""
    found = torch.zeros(group.size, dtype=torch.float64)
    for part in matrices(group):
        energy = sums.of(part)
        found += energy / sums.along(part).sum().clamp(min=1e-30)
    return found
