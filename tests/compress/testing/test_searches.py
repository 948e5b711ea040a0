"""The checks of strategies and executors pass for what is shipped, and say in a sentence what is wrong with one."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest
from short_searches import OPTIONS, STRATEGIES

from compress.core.errors import CompressError
from compress.testing.executors import check_executor
from compress.testing.strategies import check_strategy
from search.executors.local import LocalExecutor
from search.strategies import StrategyBase, StrategyContext, strategies
from search.strategies.sampler import SpaceSampler


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "n2n"])  # needs a given model
def test_shipped_strategies_pass(name: str) -> None:
    config = strategies.get(name).model_validate({"name": name, **OPTIONS.get(name, {})})
    check_strategy(config, trials=16 if name == "auto" else 40)  # half of which ask its surrogate


class Stubborn(StrategyBase):
    """Proposes by the global generator."""

    name: Literal["stubborn"] = "stubborn"

    def sampler(self, context: StrategyContext) -> Any:
        class Sampler(SpaceSampler):
            def propose(self, finished: Any, running: Any, choices: Any, generator: Any) -> Any:
                return {name: random.choice(options) for name, options in choices.items()}

        return Sampler(context.distributions, seed=context.seed)


def test_a_wrong_strategy_is_caught() -> None:
    with pytest.raises(AssertionError, match="proposes other architectures for the same seed"):
        check_strategy(Stubborn())


def test_the_shipped_executor_passes() -> None:
    check_executor(LocalExecutor())  # with several workers: see test_local; Ray: see test_ray


class Tireless(LocalExecutor):
    """Knows no deadline."""

    def run(self, job: Any, runner: Any, deadline: float | None) -> None:
        super().run(job, runner, None)


class Hasty(LocalExecutor):
    """Leaves before the end."""

    def run(self, job: Any, runner: Any, deadline: float | None) -> None:
        if deadline is None:
            runner.run(runner.ask())


class Silent(LocalExecutor):
    """Tells nobody that an evaluation failed."""

    def run(self, job: Any, runner: Any, deadline: float | None) -> None:
        try:
            super().run(job, runner, deadline)
        except CompressError:
            pass


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Tireless, "begins 10 trials after the deadline"),
        (Hasty, "of 10 trials, there are {'COMPLETE': 1}"),
        (Silent, "keeps to itself that an evaluation failed"),
    ],
)
def test_a_wrong_executor_is_caught(kind: type[LocalExecutor], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_executor(kind())
