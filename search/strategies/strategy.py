"""What a strategy is: a config that makes an Optuna sampler."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler

from compress.core.config import Config
from compress.core.registry import Registry
from compress.core.sections import OneOf
from search.objective import Direction
from spaces.architecture import Architecture
from spaces.space import Space


@dataclass(frozen=True)
class StrategyContext:
    """What a strategy may know of a search.

    Attributes:
        space: the space that is searched.
        directions: one per value of the objective.
        trials: how many evaluations are planned.
        seed: of everything random.
        feasible: says of an assignment of decisions whether it keeps the constraints that cost nothing to check.
        candidates: all architectures there are, where that is a list (a table with missing rows); else None.
        cost: metrics of an architecture that cost nothing (macs, params, looked-up latency).
        baseline: what the model is worth by the objective that candidates are versions of; None where there is none.
    """

    space: Space
    directions: tuple[Direction, ...]
    trials: int
    seed: int
    feasible: Callable[[Mapping[str, Any]], bool] | None = None
    candidates: Sequence[Architecture] | None = None
    cost: Callable[[Architecture], dict[str, float]] | None = None
    baseline: Callable[[], float] | None = None

    @property
    def distributions(self) -> dict[str, CategoricalDistribution]:
        """The decisions as Optuna distributions."""
        return self.space.distributions()


class StrategyBase(Config):
    """Options of a strategy. A subclass has a field `name: Literal["..."]`, fields for its options, and `sampler`."""

    name: str
    several: ClassVar[Collection[str]] = ()
    """Which of the names that it is registered under take several objectives."""
    maximizes: ClassVar[bool] = False
    """Whether its one objective has to be one to maximize."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that it has to know of every architecture beside those of the objective."""
        return ()

    @abstractmethod
    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the Optuna sampler; raises InputError where the strategy cannot serve the search."""


strategies: Registry[type[StrategyBase]] = Registry("strategy", home="search.strategies", base=StrategyBase)

StrategyConfig = Annotated[StrategyBase, OneOf(strategies, "name")]
"""The section `search.strategy` of a recipe: the config of one of the strategies, told apart by `name`."""
