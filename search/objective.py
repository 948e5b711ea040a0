"""Objectives: metrics to one value or several, with constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.problems import validated
from evaluators.tasks import Task, TaskConfig

Direction = Literal["maximize", "minimize"]


class Limit(Config):
    """A hard constraint on one metric."""

    min: float | None = Field(None, description="smallest allowed value")
    max: float | None = Field(None, description="largest allowed value")

    @model_validator(mode="after")
    def _something(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("a constraint needs min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g})")
        return self

    def excess(self, value: float) -> float:
        """Return by how much `value` breaks the limit: at most 0 where it does not; what is not finite breaks any."""
        if not math.isfinite(value):
            return math.inf
        below = -float("inf") if self.min is None else self.min - value
        above = -float("inf") if self.max is None else value - self.max
        return max(below, above)


class Reward(Config):
    """MnasNet's soft constraint: the maximised metric times (cost / target) ** exponent (Tan et al. 2019, eq. 2-3)."""

    metric: str = Field("latency_ms", description="the cost")
    target: float = Field(gt=0, description="cost that is aimed at, in the metric's unit")
    below: float = Field(-0.07, le=0, description="exponent where the cost is at or below the target (alpha)")
    above: float = Field(-0.07, le=0, description="exponent where the cost is above the target (beta)")

    def factor(self, cost: float) -> float:
        """Return (cost / target) ** exponent; InputError where the cost is not above 0."""
        if not cost > 0:
            raise InputError(f"search.objective.reward.metric: {self.metric} has to be above 0; got {cost:g}")
        return float((cost / self.target) ** (self.below if cost <= self.target else self.above))


class ObjectiveConfig(Config):
    """What a search is after: one metric, a reward, a weighted sum, or several metrics at once (a Pareto front)."""

    maximize: list[str] | None = Field(
        None,
        description="metrics that should be large; null: the task's main metric, or none where less of it is better",
    )
    minimize: list[str] = Field([], description="metrics that should be small")
    weights: dict[str, float] = Field({}, description="one objective instead: the sum of these metrics times weights")
    reward: Reward | None = Field(None, description="MnasNet's soft constraint on the one maximised metric")
    constraints: dict[str, Limit] = Field({}, description="hard limits by metric; checked before training if possible")

    @model_validator(mode="after")
    def _consistent(self) -> ObjectiveConfig:
        both = sorted({*self._up} & {*self.minimize})
        if both and not self.weights:
            raise ValueError(f"{both[0]} is in maximize and in minimize")
        if not self.weights and self.maximize == [] and not self.minimize:
            raise ValueError("nothing to search for: name a metric in maximize or minimize")
        one = self.maximize is None or len(self.maximize) == 1
        if self.reward is not None and (not one or self.minimize or self.weights):
            raise ValueError("reward needs exactly one metric in maximize, none in minimize and no weights")
        return self

    def unfit(self, task: Task) -> str | None:
        """Return that the task leaves open what is searched for."""
        if self.maximize is not None or self.weights or self.minimize or task.metrics:
            return None
        return f"task {task.name} has no metric to search for; name what is, in maximize or minimize"

    def for_task(self, task: TaskConfig) -> ObjectiveConfig:
        """Return the objective with the main metric of `task` where `maximize` is left out.

        Raises InputError where that does not go with the rest, such as a reward for a metric that is minimized.
        """
        if self.maximize is not None:
            return self
        main, minimize = task.main_metric, self.minimize
        if main.direction == "minimize" and main.name not in minimize:
            minimize = [main.name, *minimize]
        maximize = [main.name] if main.direction == "maximize" else []
        values = {**self.model_dump(), "maximize": maximize, "minimize": minimize}
        return validated(ObjectiveConfig, values, lambda _, text: f"search.objective: {text} (task {task.name})")

    @property
    def _up(self) -> list[str]:
        """What is maximized; nothing as long as the task has to say it."""
        return self.maximize or []

    @property
    def directions(self) -> tuple[Direction, ...]:
        """One direction per value that `values` returns."""
        if self.weights:
            return ("maximize",)
        up: list[Direction] = ["maximize" for _ in self._up]
        down: list[Direction] = ["minimize" for _ in self.minimize]
        return (*up, *down)

    @property
    def names(self) -> tuple[str, ...]:
        """What each value is called in reports."""
        if self.weights:
            return (" + ".join(f"{weight:g} {metric}" for metric, weight in self.weights.items()),)
        if self.reward is not None:
            return (f"{self._up[0]} · ({self.reward.metric} / {self.reward.target:g})^w",)
        return (*self._up, *self.minimize)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that values and constraints need, without repeats."""
        own = tuple(self.weights) if self.weights else (*self._up, *self.minimize)
        soft = (self.reward.metric,) if self.reward is not None else ()
        return tuple(dict.fromkeys((*own, *soft, *self.constraints)))

    def values(self, metrics: Mapping[str, float]) -> list[float]:
        """Return the value or values of an architecture with these metrics; KeyError names one that is missing."""
        if self.weights:
            return [sum(weight * metrics[name] for name, weight in self.weights.items())]
        values = [metrics[name] for name in (*self._up, *self.minimize)]
        if not values:
            raise ValueError("the task has not said yet what is maximized: see for_task")
        if self.reward is not None:
            values[0] *= self.reward.factor(metrics[self.reward.metric])
        return values

    def violations(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return by how much each constraint is broken (at most 0: kept), for the metrics that are there."""
        return {name: limit.excess(metrics[name]) for name, limit in self.constraints.items() if name in metrics}

    def complaint(self, metrics: Mapping[str, float]) -> str | None:
        """Return what is wrong with an architecture that breaks a constraint, such as `macs 6.1e+06 is above 5e+06`."""
        for name, excess in self.violations(metrics).items():
            if not math.isfinite(metrics[name]):
                return f"{name} is {metrics[name]}, no finite number"
            if excess > 0:
                limit = self.constraints[name]
                over = limit.max is not None and metrics[name] > limit.max
                return (
                    f"{name} {metrics[name]:g} is {'above' if over else 'below'} {limit.max if over else limit.min:g}"
                )
        return None
