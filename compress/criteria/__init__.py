"""Criteria: how much a weight (or a unit) is worth. One file per criterion; a new file is found by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Generator, Tensor

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
        """Return one bool mask per layer of a pool that drops exactly the `remove` lowest scores together."""
        return keep_largest([self.scores(weight, generator) for weight in weights], remove)


weight_criteria: Registry[type[WeightCriterion]] = Registry("weight criterion", "compress.criteria", WeightCriterion)
unit_criteria: Registry[type[UnitCriterion]] = Registry("unit criterion", "compress.criteria", UnitCriterion)


def criterion_unfit(name: str, task: Task) -> str | None:
    """Return why the unit criterion `name`, with its defaults, cannot be used with `task`; None where it can."""
    return unit_criteria.get(name)().unfit(task)
