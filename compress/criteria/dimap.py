"""DIMAP (He and Zhou, "Data-independent module-aware pruning for hierarchical vision transformers", ICLR 2024).

The score of a weight is its share of the energy of all weights of its layer that are at least as large
(Eq. 10); the weights of a module compete across its layers. Within a layer the scores order like |w|, so
a rank within a module is found from per-layer histograms of |w| and no layer is ever sorted as a whole.

**Units** (heads, head widths, hidden units, channels; not in the paper, which prunes single weights):

The paper bounds the distortion of the network's output that layer l causes by its relative distortion
d_l = ||W_l - W'_l||_F / ||W_l||_F, times one constant for all layers. Removing a unit u changes every layer that
it touches: rows of its producers, columns of its consumers. To first order the distortions of layers add up, and
by Cauchy and Schwarz (sum of d_l)^2 <= L x sum of d_l^2, where d_l^2 = (sum of e_{u,l} over removed u) / E_l with
e_{u,l} the energy (sum of squares) of unit u in layer l and E_l that of the layer. This bound is additive over
units, so a unit's part in it is the sum over layers of e_{u,l} / E_l. As the paper does for weights, E_l is taken
when u's turn comes in an order from weak to strong, so that it holds only the units at least as strong as u:

    score(u) = 1/c_u x sum over l of  e_{u,l} / (sum of e_{v,l} over units v of layer l with e_{v,l} >= e_{u,l})

c_u is what removing the unit saves (MACs or parameters, as the budget counts, as a fraction of the dense model):
least distortion under a budget is a knapsack, whose greedy solution takes the least distortion per unit of cost
first. A layer that is scaled as a whole changes no score, and the last unit of a layer scores a full 1 in it, so
units of different stages compete fairly. Groups of one kind form one module, like QKV, PRJ and MLP in the paper:
units of a layer are ranked among those of the same kind; what is not prunable in the layer always counts as stronger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from compress.criteria import Allocation, WeightCriterion, unit_criteria, weight_criteria
from compress.criteria.exact_selection import between, bin_edges, histogram, keep_above
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, energies, matrices, per_cost
from compress.graph.graph import Group

_SLACK = 1e-9  # relative; far above float64 rounding of the sums, far below the width of a bin


def relative_distortion(weight: Tensor) -> Tensor:
    """Return w_p^2 / sum of w_q^2 over |w_q| >= |w_p| in float64, shaped like `weight` (DIMAP Eq. 10).

    Equal magnitudes are ranked by index, so the largest of a layer scores exactly 1. An all-zero layer scores 0.
    """
    magnitude, order = weight.detach().abs().flatten().sort(stable=True)
    square = magnitude.double().square()
    score = _share(square, square.flip(0).cumsum(0).flip(0))
    return torch.empty_like(score).scatter_(0, order, score).view(weight.shape)


def keep_most_relative(weights: Sequence[Tensor], remove: int) -> list[Tensor]:
    """Return keep masks that drop exactly the `remove` lowest relative distortions of all layers together.

    The same masks as sorting every layer, and stable in the same way: among equal scores the earlier
    layer, then the lower index goes first.
    """
    layers = [_Layer.of(weight) for weight in weights]
    least = _at_rank(layers, remove, "lower") * (1 - _SLACK)
    most = _at_rank(layers, remove, "upper") * (1 + _SLACK)
    rivals = [layer.rivals(least, most) for layer in layers]
    left = remove - sum(rival.below for rival in rivals)
    owner = torch.cat([torch.full_like(rival.score, index, dtype=torch.int64) for index, rival in enumerate(rivals)])
    lowest = torch.cat([rival.score for rival in rivals]).sort(stable=True).indices[:left]
    counts = torch.bincount(owner[lowest], minlength=len(layers)).tolist()
    return [layer.cut(rival, count) for layer, rival, count in zip(layers, rivals, counts, strict=True)]


@weight_criteria.register("dimap")
class Dimap(WeightCriterion):
    """Relative distortion with one threshold per module; `allocation: global` is the paper's ablation."""

    allocation: ClassVar[Allocation] = "module"

    def scores(self, weight: Tensor, generator: Generator) -> Tensor:
        """Return the relative distortion of every weight (float64)."""
        return relative_distortion(weight)

    def order(self, weight: Tensor, generator: Generator) -> Tensor:
        """Return |w|: the scores of one layer order like it."""
        return weight.abs()

    def keep(self, weights: Sequence[Tensor], remove: int, generator: Generator) -> list[Tensor]:
        """Return the masks of `scores` without sorting the layers."""
        return keep_most_relative(weights, remove)


@dataclass(frozen=True)
class _Rivals:
    """The weights of a layer whose score may be on either side of the threshold, ascending."""

    below: int  # weights that are surely removed
    floor: float  # every rival is at least this large, everything surely removed is smaller
    magnitude: Tensor
    score: Tensor


@dataclass(frozen=True)
class _Layer:
    """A layer's weights with the count, the energy and the bounds of the score of each bin of |w|."""

    weight: Tensor
    edges: Tensor
    used: Tensor  # (b,) bins that hold weights
    count: Tensor
    above: Tensor  # energy of all bins above
    lower: Tensor  # bounds of the scores in the bin: they never fall from a bin to the next
    upper: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> _Layer:
        count, energy = histogram(weight)
        edges = bin_edges(weight.dtype)
        used = count.nonzero().view(-1)
        energy = energy[used]
        suffix = energy.flip(0).cumsum(0).flip(0)
        above = torch.cat([suffix[1:], suffix.new_zeros(1)])
        low = edges[used].square()
        high = edges[used + 1].clamp(max=torch.finfo(weight.dtype).max).square()
        return cls(weight, edges, used, count[used], above, _share(low, suffix), _share(high, above + high))

    def rivals(self, least: float, most: float) -> _Rivals:
        """Return the weights that may score between `least` and `most`."""
        first = int((self.upper < least).sum())
        last = int((self.lower <= most).sum())
        below = int(self.count[:first].sum())
        if first >= last:
            floor = float(self.edges[self.used[first]]) if first < len(self.used) else torch.inf
            return _Rivals(below, floor, self.weight.new_empty(0), self.edges.new_empty(0))
        floor, ceiling = float(self.edges[self.used[first]]), float(self.edges[self.used[last - 1] + 1])
        magnitude = between(self.weight.abs(), floor, ceiling).sort().values
        square = magnitude.double().square()
        suffix = square.flip(0).cumsum(0).flip(0) + self.above[last - 1]
        return _Rivals(below, floor, magnitude, _share(square, suffix))

    def cut(self, rivals: _Rivals, count: int) -> Tensor:
        """Return the mask of what stays when all below the rivals and the `count` lowest rivals go."""
        if count == 0:
            return keep_above(self.weight.abs(), rivals.floor, 0)
        cut = rivals.magnitude[count - 1]
        return keep_above(self.weight.abs(), cut, int((rivals.magnitude[:count] == cut).sum()))


def _at_rank(layers: Sequence[_Layer], rank: int, bound: str) -> float:
    """Return a bound of the score of `rank` (1 is the lowest) over all layers, from the bins' bounds alone."""
    bounds, order = torch.cat([getattr(layer, bound) for layer in layers]).sort()
    upto = torch.cat([layer.count for layer in layers])[order].cumsum(0)
    return float(bounds[torch.searchsorted(upto, rank)])


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, and 0 where a layer's energy is 0."""
    return torch.where(whole > 0, part / whole, 0.0)


def relative_energy(energy: Tensor, rest: Tensor | float = 0.0) -> Tensor:
    """Return each energy over the sum of `rest` and all energies at least as large (float64, shape of `energy`)."""
    value, order = energy.sort(descending=True, stable=True)
    return torch.empty_like(value).scatter_(0, order, _share(value, value.cumsum(0) + rest))


@unit_criteria.register("dimap")
class DimapUnits(UnitCriterion):
    """The relative distortion that a unit's removal causes, over what the unit costs."""

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return the relative distortion that a unit's removal causes in the layers it touches, over its cost."""
        sums = energies(model)
        scores = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
        rivals = defaultdict(list)
        for group in groups:
            for part in matrices(group):
                rivals[part.tensor, part.dim, group.kind].append((group, part))
        for members in rivals.values():
            parts = [sums.of(part) for _, part in members]
            energy = torch.cat(parts)
            rest = (sums.along(members[0][1]).sum() - energy.sum()).clamp(min=0.0)
            shares = torch.split(relative_energy(energy, rest), [len(part) for part in parts])
            for (group, _), share in zip(members, shares, strict=True):
                scores[group.name] += share
        return per_cost(scores, data)
