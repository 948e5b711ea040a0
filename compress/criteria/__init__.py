"""Criteria: how much a weight (or a unit) is worth. One file per criterion; a new file is found by itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from compress.core.errors import InputError
from compress.core.registry import Registry
from compress.criteria.exact_selection import keep_largest
from compress.criteria.unit_criterion import UnitCriterion
from evaluators.tasks import Task

Allocation = Literal["module", "global", "uniform"]


class WeightCriterion(ABC):
    """Scores single weights; low scores are removed.

    `prune_weights` forms pools of layers by the allocation (one per module, one for all, or one per layer)
    and calls `keep` once per pool. A criterion needs only `scores`; it overrides `keep` where it knows a
    faster way to the same masks.
    """

    allocation: ClassVar[Allocation] = "uniform"
    """How layers are pooled where the recipe does not say."""

    @abstractmethod
    def scores(self, weight: Tensor, generator: Generator) -> Tensor:
        """Return one non-negative float score per weight (shape of `weight`), comparable within a pool."""

    def order(self, weight: Tensor, generator: Generator) -> Tensor:
        """Return values that order the weights of one layer as `scores` does; used for N:M patterns."""
        return self.scores(weight, generator)

    def keep(self, weights: Sequence[Tensor], remove: int, generator: Generator) -> list[Tensor]:
        """Return one bool mask per layer of a pool that drops exactly the `remove` lowest scores together.

        Raises InputError where `scores` gives something else than it has to, see `sound`.
        """
        return keep_largest([self.sound(self.scores, weight, generator) for weight in weights], remove)

    def sound(self, score: Callable[[Tensor, Generator], Tensor], weight: Tensor, generator: Generator) -> Tensor:
        """Return what `score` (of this criterion, which may be a third party's) gives for `weight`.

        Raises InputError, naming the criterion: it is no tensor of finite floats of the shape of `weight`, holds
        numbers below 0 where those of a pool are compared by `scores`, or the weight itself was changed.
        """
        version = weight._version
        scores = score(weight, generator)
        wrong = None
        if weight._version != version:
            wrong = "changes the weights that it scores"
        elif not isinstance(scores, Tensor) or scores.shape != weight.shape or not scores.is_floating_point():
            got = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            wrong = f"gives {got} for weights {tuple(weight.shape)}; allowed: a float for each"
        elif scores.numel():
            low, high = (float(end) for end in torch.aminmax(scores.detach()))
            if not (math.isfinite(low) and math.isfinite(high)):
                wrong = "gives NaN or infinite scores"
            elif low < 0 and score == self.scores:
                wrong = f"gives scores below 0 (down to {low:g}); allowed: 0 and above"
        if wrong is not None:
            raise InputError(f"prune.criterion: {type(self).__name__} {wrong}")
        return scores.detach()


weight_criteria: Registry[type[WeightCriterion]] = Registry("weight criterion", "compress.criteria", WeightCriterion)
unit_criteria: Registry[type[UnitCriterion]] = Registry("unit criterion", "compress.criteria", UnitCriterion)


def criterion_unfit(name: str, task: Task) -> str | None:
    """Return why the unit criterion `name`, with its defaults, cannot be used with `task`; None where it can."""
    return unit_criteria.get(name)().unfit(task)
