"""The section `search` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compress.config import Config
from evaluators.kinds import EvaluatorConfig
from evaluators.meter import SearchLatency
from search.executors.local import LocalExecutor
from search.executors.ray import RayExecutor
from search.objective import ObjectiveConfig
from search.strategies import StrategyConfig


class SpaceConfig(Config):
    """The space that is searched."""

    name: str = Field(description="a name of `compress ls spaces`, or nni:package.module.Class")
    preset: str | None = Field(None, description="a named set of the space's options")
    options: dict[str, Any] = Field({}, description="options of the space, see `compress space NAME`")


class PrunerConfig(Config):
    """Stops trials early that fall behind (after Optuna's pruners of the same names)."""

    name: Literal["asha", "hyperband", "median", "threshold"] = Field("asha", description="which pruner of Optuna's")
    options: dict[str, Any] = Field({}, description="arguments of the pruner, as Optuna's documentation names them")


class SearchConfig(Config):
    """Which architectures are tried, how they are judged, where trials run, and what is kept."""

    space: SpaceConfig = Field(description="the space that is searched")
    strategy: StrategyConfig = Field(description="which architecture is tried next")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="what the search is after")
    evaluator: EvaluatorConfig = Field(description="what an architecture is worth")
    latency: SearchLatency | None = Field(None, description="where the metric latency_ms comes from")
    trials: int = Field(100, ge=1, description="architectures that are evaluated")
    minutes: float | None = Field(None, gt=0, description="no new trial after so much wall clock, summed over resumes")
    pruner: PrunerConfig | None = Field(None, description="early stopping of trials; null trains each to its end")
    executor: Annotated[LocalExecutor | RayExecutor, Field(discriminator="kind")] = Field(
        default_factory=LocalExecutor, description="where trials run"
    )
    keep: int = Field(1, ge=1, description="how many of the best become bundles; the first is the winner")

    @model_validator(mode="after")
    def _one_objective_to_prune(self) -> SearchConfig:
        if self.pruner is not None and len(self.objective.directions) > 1:
            raise ValueError("pruner works with one objective; leave it out or name one metric")
        return self
