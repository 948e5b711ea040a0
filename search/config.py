"""The section `search` of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)
from pydantic import Field, ValidationInfo, field_validator, model_validator

from compress.core.config import Config
from compress.core.errors import InputError
from evaluators.candidates.evaluator import EvaluatorConfig
from evaluators.candidates.latency import SearchLatency
from evaluators.tasks import TaskConfig
from search.arguments import check_arguments
from search.executors.executor import ExecutorConfig
from search.executors.local import LocalExecutor
from search.objective import ObjectiveConfig
from search.space import SpaceSection
from search.strategies import StrategyConfig, strategies
from search.strategies.auto import AutoStrategy

PRUNERS: dict[str, type[BasePruner]] = {
    "asha": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
    "median": MedianPruner,
    "threshold": ThresholdPruner,
}


class PrunerConfig(Config):
    """Stops trials early that fall behind (after Optuna's pruners of the same names)."""

    name: Literal["asha", "hyperband", "median", "threshold"] = Field("asha", description="which pruner of Optuna's")
    options: dict[str, Any] = Field({}, description="arguments of the pruner, as Optuna's documentation names them")

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" in info.data:
            check_arguments(PRUNERS[info.data["name"]], options)
        return options


class SearchConfig(Config):
    """Which architectures are tried, how they are judged, where trials run, and what is kept."""

    space: SpaceSection = Field(description="the space that is searched")
    strategy: StrategyConfig = Field(default_factory=AutoStrategy, description="which architecture is tried next")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="what the search is after")
    evaluator: EvaluatorConfig = Field(description="what an architecture is worth")
    latency: SearchLatency | None = Field(None, description="where the metric latency_ms comes from")
    trials: int = Field(100, ge=1, description="architectures that are evaluated")
    minutes: float | None = Field(None, gt=0, description="no new trial after so much wall clock, summed over resumes")
    pruner: PrunerConfig | None = Field(None, description="early stopping of trials; null trains each to its end")
    executor: ExecutorConfig = Field(default_factory=LocalExecutor, description="where trials run")
    keep: int | None = Field(
        None, ge=1, description="how many of the best are kept, the first is the winner; null: it alone, or the front"
    )
    tensorboard: bool = Field(False, description="write every trial's figures to tensorboard/ in the run, as it ends")

    @model_validator(mode="after")
    def _fits_its_objective(self) -> SearchConfig:
        if self.objective.maximize is not None:  # else `for_task` finds out
            self._check_objective()
        return self

    def for_task(self, task: TaskConfig) -> SearchConfig:
        """Return the section with what it leaves to `task` filled in: the metric that is searched for.

        Raises InputError where that does not go with the rest, or no pruner can watch it.
        """
        filled = self.model_copy(update={"objective": self.objective.for_task(task)})
        try:
            filled._check_objective()
        except ValueError as error:
            raise InputError(f"search: {error}") from error
        filled.check_watched(task)
        return filled

    def _check_objective(self) -> None:
        """Raise ValueError for an objective that the pruner or the strategy does not take."""
        if self.pruner is not None:
            self._check_pruner()
        count = len(self.objective.directions)
        if self.strategy.maximizes and self.objective.directions != ("maximize",):
            raise ValueError(
                f"strategy {self.strategy.name} compares networks by a share of what the given one is worth; it needs "
                f"one metric to maximize; got objective {', '.join(self.objective.names)}"
            )
        if count > 1 and self.strategy.name not in self.strategy.several:
            able = [name for name in strategies if name in strategies.get(name).several]
            raise ValueError(
                f"strategy {self.strategy.name} searches for one value; got {count} in objective "
                f"({', '.join(self.objective.names)}); allowed for several: {', '.join(able)}"
            )

    def _check_pruner(self) -> None:
        if len(self.objective.directions) > 1:
            raise ValueError("pruner works with one objective; leave it out or name one metric")
        if not self.evaluator.reports:
            raise ValueError(
                "pruner stops candidates in the middle of their training; it needs evaluator.kind: train with "
                f"train.evaluate_every of at least 1; got kind: {self.evaluator.kind}"
            )

    def check_watched(self, task: TaskConfig) -> None:
        """Raise InputError where the objective holds no metric of `task` that the pruner can watch on the way."""
        if self.pruner is None:
            return
        ways = {metric.name: metric.direction for metric in task.metrics}
        watched = next((name for name in self.objective.metrics if name in ways), None)
        up = self.objective.directions == ("maximize",)
        grows = up and self.objective.weights.get(watched or "", 1.0) > 0
        if watched is None or (up if ways[watched] == "minimize" else not grows):
            told = (
                f"{' or '.join(names)} ({way}d)"
                for way in ("maximize", "minimize")
                if (names := [name for name, own in ways.items() if own == way])
            )
            raise InputError(
                f"search: pruner compares candidates by {' or '.join(told)} on the way; "
                f"got objective {', '.join(self.objective.names)}"
            )
