"""A small space with conditional decisions, and searches on it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from torch import nn

from compress.core.config import Config
from evaluators.tasks import Task
from search.strategies.sampler import Finished
from search.strategies.strategy import StrategyBase, StrategyContext
from spaces.architecture import Architecture, Decision, where
from spaces.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)


class ChainSpace(Space):
    """One to three layers with an operation each, and a width: 3 * (3 + 9 + 27) architectures."""

    Config = Config
    name = "chain"

    def _decisions(self) -> list[Decision]:
        operations = ("conv", "pool", "none")
        return [
            Decision("depth", (1, 2, 3)),
            Decision("operation1", operations),
            Decision("operation2", operations, when=where("depth", 2, 3)),
            Decision("operation3", operations, when=where("depth", 3)),
            Decision("width", (8, 16, 32)),
        ]

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        raise NotImplementedError


class Chain:
    """The space, with a score that has one best architecture: three convolutions, width 16."""

    best = 2.7

    def __init__(self) -> None:
        self.space = ChainSpace(Config())
        self.choices = {decision.name: decision.choices for decision in self.space.decisions}

    def score(self, params: Mapping[str, Any]) -> float:
        """Return what an architecture is worth."""
        layers = sum({"conv": 1.0, "pool": 0.3}.get(params.get(f"operation{place}"), 0.0) for place in (1, 2, 3))
        return float(layers - 0.1 * params["depth"] - abs(params["width"] - 16) / 100)

    def history(self, count: int, seed: int = 0) -> list[Finished]:
        """Return random finished trials."""
        generator = random.Random(seed)
        architectures = [dict(self.space.sample(generator)) for _ in range(count)]
        return [Finished(number, params, self.score(params)) for number, params in enumerate(architectures)]

    def sampler(self, config: StrategyBase, **others: Any) -> BaseSampler:
        """Return the sampler that a recipe would get."""
        return config.sampler(StrategyContext(self.space, ("maximize",), trials=100, seed=3, **others))

    def search(self, sampler: BaseSampler, trials: int, study: Study | None = None) -> Study:
        """Evaluate `trials` architectures one after the other, going on with `study` where there is one."""
        if study is None:
            study = optuna.create_study(direction="maximize")
        study.sampler = sampler
        for _ in range(trials):
            trial = study.ask()
            study.tell(trial, self.score(self.space.suggest(trial)))
        return study

    def search_with_trouble(self, sampler: BaseSampler, trials: int) -> Study:
        """Search with four workers: trials overlap, finish out of order, and some fail, are pruned or never end."""
        study = optuna.create_study(direction="maximize", sampler=sampler)
        generator = random.Random(0)
        waiting = []
        for number in range(trials):
            trial = study.ask()
            waiting.append((trial, self.score(self.space.suggest(trial))))
            if len(waiting) == 4:
                trial, score = waiting.pop(generator.randrange(4))
                state = {3: TrialState.FAIL, 5: TrialState.PRUNED}.get(number % 10, TrialState.COMPLETE)
                study.tell(trial, score if state == TrialState.COMPLETE else None, state=state)
        return study


@pytest.fixture
def chain() -> Chain:
    return Chain()
