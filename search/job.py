"""A search as plain values that any process can open: what local workers and Ray actors are handed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.pruners import BasePruner

from compress.errors import InputError, did_you_mean
from evaluators.datasets import Data, DataConfig, load_data
from evaluators.evaluator import EvaluatorContext
from search.config import PrunerConfig, SearchConfig, SpaceConfig
from search.runner import Judge, Runner
from search.strategies import StrategyContext, make_sampler
from search.study import open_study, sharing
from spaces.registry import create, open_preset
from spaces.space import Space
from spaces.zoo import ModelConfig


@dataclass(frozen=True)
class SearchJob:
    """Everything that a worker needs to take part in a search.

    Attributes:
        config: the recipe's section `search`.
        data: its section `data`, or None.
        model: its section `model`, or None; the network that the space `channels` narrows.
        name: of the study.
        seed: the recipe's.
        device: where candidates are trained, such as "cpu" or "cuda:0".
        directory: the run's; absolute.
    """

    config: SearchConfig
    data: DataConfig | None
    model: ModelConfig | None
    name: str
    seed: int
    device: str
    directory: Path

    def judge(self) -> Judge:
        """Return what gives architectures their metrics; raises InputError where the parts do not fit together."""
        space = make_space(self.config.space, self.model)
        data = self._data(space)
        if data is not None:
            size = data.preprocessing.input_size[-1]
            space.default_task = space.task(data.num_classes, data.in_chans, size)
        context = EvaluatorContext(space, data, self.device, self.seed, self.directory / "evaluations", self.model)
        evaluator = self.config.evaluator.make(context)
        meter = self.config.latency.make(context) if self.config.latency is not None else None
        judge = Judge(space, evaluator, self.config.objective, meter, self.seed, self.config.strategy.metrics)
        judge.check()
        return judge

    def open(self, judge: Judge | None = None) -> Runner:
        """Open the study, with the strategy and the pruner, and return what works on it."""
        judge = judge or self.judge()
        sampler = make_sampler(self.config.strategy, self._context(judge))
        pruner = make_pruner(self.config.pruner)
        storage = self.config.executor.storage
        study = open_study(self.name, storage, self.directory, judge.objective.directions, sampler, pruner)
        return Runner(study, judge, self.config.trials, sharing(storage, self.directory))

    def _context(self, judge: Judge) -> StrategyContext:
        space, objective = judge.space, judge.objective

        def feasible(choices: Any) -> bool:
            return objective.complaint(judge.free(space.check(choices, drop_untaken=True))) is None

        return StrategyContext(
            space=space,
            directions=objective.directions,
            trials=self.config.trials,
            seed=self.seed,
            feasible=feasible if objective.constraints else None,
            candidates=space.candidates,
            cost=judge.free,
        )

    def _data(self, space: Space) -> Data | None:
        if self.data is None:
            return None
        return load_data(self.data, None, image_size=space.default_task.img_size, seed=self.seed)


def make_space(config: SpaceConfig, model: ModelConfig | None = None) -> Space:
    """Return the space of a recipe; `channels` narrows the recipe's model unless its options name one."""
    options: dict[str, Any] = dict(config.options)
    if config.name == "channels" and model is not None:
        options.setdefault("model", model.model_dump())
    if config.preset is not None:
        return open_preset(config.name, config.preset, options)[0]
    return create(config.name, options)


def make_pruner(config: PrunerConfig | None) -> BasePruner | None:
    """Return Optuna's pruner; raises InputError for an argument that it does not take."""
    from optuna import pruners

    if config is None:
        return None
    kinds: dict[str, type[BasePruner]] = {
        "asha": pruners.SuccessiveHalvingPruner,
        "hyperband": pruners.HyperbandPruner,
        "median": pruners.MedianPruner,
        "threshold": pruners.ThresholdPruner,
    }
    kind = kinds[config.name]
    known = inspect.signature(kind).parameters
    for key in config.options:
        if key not in known:
            near = did_you_mean(key, known)
            raise InputError(f"search.pruner.options.{key}: {kind.__name__} takes no such argument{near}")
    try:
        return kind(**config.options)
    except (TypeError, ValueError) as error:
        raise InputError(f"search.pruner.options: {kind.__name__} refuses {config.options}: {error}") from error
