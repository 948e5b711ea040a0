"""Ranks for a low-rank factorisation: the least that keep so much of each layer, or those that meet a budget together.

What rank r keeps of a weight is the energy of its r largest singular values: their squares as a share of all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.core.errors import InputError
from compress.prune.replaceable import Layer

TOLERANCE = 0.02
CELLS = 10_000


@dataclass(frozen=True)
class Spectrum:
    """A layer's weight as a matrix (O, I · kernel): `kept[r]` is the share of energy that rank r keeps, up to the full.

    `basis` are singular vectors of its shorter side, in columns, the largest first. `unit` is what one unit of rank
    costs in weights, `dense` what the whole layer has.
    """

    layer: Layer
    kept: NDArray[np.float64]
    basis: Tensor
    unit: int
    dense: int

    @property
    def full(self) -> int:
        """The rank of a weight of this shape."""
        return len(self.kept) - 1

    @property
    def most(self) -> int:
        """The largest rank at which both layers together have fewer weights."""
        return (self.dense - 1) // self.unit


def spectrum(layer: Layer) -> Spectrum:
    """Return the singular values and vectors of a layer's weight, computed in float64 from its Gram matrix."""
    weight = _matrix(layer)
    short = weight if weight.shape[0] <= weight.shape[1] else weight.T
    values, vectors = torch.linalg.eigh(short @ short.T)
    energy = values.flip(0).clamp(min=0).cpu().numpy()
    total = energy.sum()
    kept = np.concatenate([[0.0], np.cumsum(energy) / total if total > 0 else np.ones(len(energy))])
    basis = vectors.flip(1).to(layer.layer.weight.dtype)
    return Spectrum(layer, kept, basis, sum(weight.shape), weight.numel())


def flat(layer: Layer) -> Spectrum:
    """Return what the shape of a layer tells: its ranks and costs, without singular vectors, all values alike."""
    weight = layer.layer.weight.flatten(1)
    return Spectrum(layer, np.linspace(0, 1, min(weight.shape) + 1), torch.empty(0), sum(weight.shape), weight.numel())


def truncated(s: Spectrum, rank: int) -> tuple[Tensor, Tensor]:
    """Return (expand (O, rank), reduce (rank, I · kernel)), whose product is the nearest of its rank to the weight.

    Both have the same norms: each takes the root of every singular value.
    """
    weight = _matrix(s.layer)
    basis = s.basis[:, :rank].double()
    left, right = (basis, basis.T @ weight) if len(basis) == len(weight) else (weight @ basis, basis.T)
    root = (left.norm(dim=0) * right.norm(dim=1)).sqrt()
    root = torch.where(root > 0, root, torch.ones_like(root))
    balance = [root / norm.clamp(min=1e-300) for norm in (left.norm(dim=0), right.norm(dim=1))]
    dtype = s.layer.layer.weight.dtype
    return (left * balance[0]).to(dtype), (right * balance[1][:, None]).to(dtype)


def _matrix(layer: Layer) -> Tensor:
    return layer.layer.weight.detach().double().flatten(1)


def keeping(spectra: Sequence[Spectrum], energy: float) -> dict[str, int]:
    """Return by layer the least rank that keeps so much of its energy."""
    return {s.layer.name: max(1, int(np.searchsorted(s.kept, energy - 1e-12))) for s in spectra}


def meeting(spectra: Sequence[Spectrum], counted: str, total: int, target: float) -> dict[str, int]:
    """Return the ranks that keep the most energy, as a mean over layers, for a share `target` of the model's cost.

    Layers that are left out stay whole. One price for a weight (or MAC) decides all layers at once: each takes the rank
    at which energy minus price times cost is largest. The price is found by bisection, and what is left of the budget
    goes to the singular values that hold the most energy for their cost.

    Args:
        spectra: of the layers that have a rank at which they cost less.
        counted: "params" or "macs".
        total: the cost of the whole model as it is.
        target: share of `total` that the model may cost afterwards, met within 0.02.

    Raises:
        InputError: the budget cannot be met.
    """
    places = np.array([s.layer.places if counted == "macs" else 1 for s in spectra], dtype=np.float64)
    costs = [place * _costs(s) for place, s in zip(places, spectra, strict=True)]
    kept = [np.append(s.kept[1 : s.most + 1], 1.0) for s in spectra]
    rest = total - sum(cost[-1] for cost in costs)
    room = target * total - rest
    choice = _priced(costs, kept, room)
    achieved = (rest + sum(cost[i] for cost, i in zip(costs, choice, strict=True))) / total
    if abs(achieved - target) > TOLERANCE:
        raise _unmet(counted, target, achieved)
    return {s.layer.name: i + 1 for s, i in zip(spectra, choice, strict=True) if i < s.most}


def refuse_unreachable(spectra: Sequence[Spectrum], counted: str, total: int, target: float) -> None:
    """Raise InputError where no ranks at all meet a budget, whatever the weights; arguments as those of `meeting`.

    The costs that ranks can add up to are marked on a grid of `CELLS` between least and most; what is lost by rounding
    is granted.
    """
    costs = [(s.layer.places if counted == "macs" else 1) * _costs(s) for s in spectra]
    least, most = (sum(cost[place] for cost in costs) for place in (0, -1))
    rest = total - most
    wanted = target * total - rest - least
    if wanted < 0:
        if (rest + least) / total - target > TOLERANCE:
            raise _unmet(counted, target, (rest + least) / total)
        return
    cell = max(most - least, 1) / CELLS
    reached = 1  # bit i: some choice costs about i cells more than the least
    for cost in costs:
        reached = functools.reduce(
            int.__or__, (reached << step for step in set(np.rint((cost - cost[0]) / cell).astype(int).tolist()))
        )
    below = reached & ((1 << int(wanted / cell + len(costs) / 2) + 1) - 1)
    nearest = (rest + least + (below.bit_length() - 1) * cell) / total
    if target - nearest > TOLERANCE + len(costs) / 2 * cell / total:
        raise _unmet(counted, target, nearest)


def _unmet(counted: str, target: float, nearest: float) -> InputError:
    why = (
        "every layer that can be factorised is at rank 1"
        if nearest > target
        else "too few layers can be factorised for a finer choice"
    )
    return InputError(f"prune.budget.{counted}: {target:g} cannot be met; the nearest is {nearest:.3f}: {why}")


def _costs(s: Spectrum) -> NDArray[np.float64]:
    """Return the weights of the layer at the ranks 1, 2, ... that cost less, and as it is."""
    return np.append(s.unit * np.arange(1, s.most + 1), s.dense).astype(np.float64)


def _priced(costs: Sequence[NDArray[np.float64]], kept: Sequence[NDArray[np.float64]], room: float) -> list[int]:
    """Return for each layer the place of its choice among its costs, which cost no more than `room` if that can be."""

    def at(price: float) -> list[int]:
        return [int(np.argmax(worth - price * cost)) for cost, worth in zip(costs, kept, strict=True)]

    def spent(choice: Sequence[int]) -> float:
        return float(sum(cost[i] for cost, i in zip(costs, choice, strict=True)))

    if spent(at(0.0)) <= room:
        return at(0.0)
    low, high = 1e-30, 1.0  # at 1, one weight costs as much as all energy of a layer is worth: rank 1 everywhere
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(at(middle)) <= room else (middle, high)
    choice = at(high)
    left = room - spent(choice)
    while True:
        steps = [
            ((worth[i + 1] - worth[i]) / (cost[i + 1] - cost[i]), number)
            for number, (cost, worth, i) in enumerate(zip(costs, kept, choice, strict=True))
            if i + 1 < len(cost) and cost[i + 1] - cost[i] <= left
        ]
        if not steps:
            return choice
        _, number = max(steps)
        left -= float(costs[number][choice[number] + 1] - costs[number][choice[number]])
        choice[number] += 1
