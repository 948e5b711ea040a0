"""The arithmetic of merging: distances between the units of a group, and what one merge does to weights and distances.

All tensors are float64 working copies of full size: what is merged away becomes zero in place, so no index moves.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from compress.criteria.unit_criterion import matrices, named_tensors
from compress.graph.graph import Group, Slice

Rule = Literal["mean_in_sum_out", "sum_in_mean_out"]
ROUNDING = 1e-13  # of a squared distance, relative to the largest squared norm of a unit


class Merging:
    """All groups of a model while their units are merged."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], rule: Rule) -> None:
        """Copy the tensors that the groups touch and measure all distances."""
        tensors = named_tensors(model)
        names = dict.fromkeys(part.tensor for group in groups for part in group.slices)
        self.tensors = {name: tensors[name].double().cpu().clone() for name in names}
        self.states = [
            GroupState(group, self.tensors, [_is_summed(part, rule, model) for part in group.slices])
            for group in groups
        ]
        self._places: dict[str, list[tuple[GroupState, Slice]]] = defaultdict(list)
        for state in self.states:
            for part in matrices(state.group):
                self._places[part.tensor].append((state, part))

    def merge(self, state: GroupState, i: int, j: int) -> None:
        """Merge unit j into unit i of a group (as numbered now), in all tensors, and bring all distances up to date."""
        units = [int(state.units[i]), int(state.units[j])]
        self._tell_neighbours(state, units, -1)
        for part in state.group.slices:
            state.join(part, units[0], units[1])
        self._tell_neighbours(state, units, 1)
        state.update(i, j)

    def write_back(self, model: nn.Module) -> None:
        """Copy the working tensors into the model."""
        for name, tensor in named_tensors(model).items():
            if name in self.tensors:
                tensor.copy_(self.tensors[name])

    def _tell_neighbours(self, state: GroupState, units: list[int], sign: int) -> None:
        """Add (or take away) what the given units of one group add to the products of the groups across its tensors."""
        for part in matrices(state.group):
            others = [
                (other, at) for other, at in self._places[part.tensor] if other is not state and at.dim != part.dim
            ]
            if others:
                touched = self.tensors[part.tensor].index_select(part.dim, part.positions[units].reshape(-1))
                for other, at in others:
                    other.add_products(at, touched, sign)


class GroupState:
    """One group while it is merged.

    `units` are the original indices of the units left, `counts` the number of originals inside each. The inner
    products of the units' weights are kept in two matrices, over the tensors that add up in a merge and over those
    that are averaged: what a merge does to either is linear, so no weight needs to be read again.
    """

    def __init__(self, group: Group, tensors: dict[str, Tensor], summed: Sequence[bool]) -> None:
        """Measure all products of a group; `summed` tells for each of its slices how it merges."""
        self.group = group
        self.tensors = tensors
        self.units = torch.arange(group.size)
        self.counts = torch.ones(group.size, dtype=torch.float64)
        self.products: list[Tensor] = []
        self._closest: tuple[int, int, float, float] | None = None
        self.summed = {(part.tensor, part.dim): add for part, add in zip(group.slices, summed, strict=True)}
        dims = Counter(part.tensor for part in matrices(group))
        self._maps_itself = max(dims.values(), default=0) > 1  # a layer from the stream to itself
        self._measure()
        self.first_maximum = self.closest()[3]

    def closest(self) -> tuple[int, int, float, float]:
        """Return the two nearest units i < j, their squared distance, and the largest distance of any two.

        What rounding leaves of the distance between equals counts as 0.
        """
        if self._closest is None:
            products = self.products[0] + self.products[1]
            energy = products.diagonal()
            distance = energy[:, None] + energy[None] - 2 * products
            i, j = divmod(int(distance.fill_diagonal_(torch.inf).argmin()), len(energy))
            least = float(distance[i, j])
            largest = float(distance.fill_diagonal_(0.0).max())
            floor = ROUNDING * float(energy.max())
            least, largest = (0.0 if value <= floor else value for value in (least, largest))
            self._closest = min(i, j), max(i, j), least, largest
        return self._closest

    def add_products(self, part: Slice, tensor: Tensor, sign: int = 1) -> None:
        """Add the inner products of the units' entries in one tensor (or in positions cut out of it)."""
        positions = part.positions[self.units].reshape(len(self.units), -1)
        rows = tensor.movedim(part.dim, 0)[positions].flatten(1)
        self.products[int(self.summed[part.tensor, part.dim])].addmm_(rows, rows.T, alpha=sign)
        self._closest = None

    def join(self, part: Slice, i: int, j: int) -> None:
        """Write the merged entries of the original unit i in one tensor, and zeros for j."""
        tensor = self.tensors[part.tensor]
        at_i, at_j = part.positions[i].reshape(-1), part.positions[j].reshape(-1)
        a, b = self._weights(self.summed[part.tensor, part.dim], i, j)
        joined = a * tensor.index_select(part.dim, at_i) + b * tensor.index_select(part.dim, at_j)
        tensor.index_copy_(part.dim, at_i, joined)
        tensor.index_fill_(part.dim, at_j, 0.0)

    def update(self, i: int, j: int) -> None:
        """Give unit i (as numbered now) the counts and products of the merged unit and drop unit j."""
        first, second = int(self.units[i]), int(self.units[j])
        for add, products in enumerate(self.products):
            a, b = self._weights(bool(add), first, second)
            products[i] = a * products[i] + b * products[j]
            products[:, i] = a * products[:, i] + b * products[:, j]
        self.counts[first] += self.counts[second]
        self.counts[second] = 0
        left = torch.arange(len(self.units)) != j
        self.units = self.units[left]
        self.products = [products[left][:, left] for products in self.products]
        self._closest = None
        if self._maps_itself:
            self._measure()

    def _weights(self, add: bool, i: int, j: int) -> tuple[float, float]:
        if add:
            return 1.0, 1.0
        share = float(self.counts[j] / (self.counts[i] + self.counts[j]))
        return 1.0 - share, share

    def _measure(self) -> None:
        self.products = [torch.zeros(len(self.units), len(self.units), dtype=torch.float64) for _ in range(2)]
        for part in matrices(self.group):
            self.add_products(part, self.tensors[part.tensor])


def _is_summed(part: Slice, rule: Rule, model: nn.Module) -> bool:
    """Return whether the entries of two merged units add up here; elsewhere they are averaged.

    `mean_in_sum_out`: consumers add up. `sum_in_mean_out` (the reference code): what makes the signal adds up, which
    is producers, biases and batch norms; what acts on one channel at a time (depthwise kernels, layer scales, other
    norms) would double the doubled signal again and is averaged.
    """
    if rule == "mean_in_sum_out":
        return part.role == "in"
    module = model.get_submodule(part.layer)
    if part.role == "out":
        return not (isinstance(module, _ConvNd) and module.groups > 1)
    return part.role == "vector" and (isinstance(module, _BatchNorm) or part.tensor.endswith("bias"))
