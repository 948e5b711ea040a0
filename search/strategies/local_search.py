"""Hill climbing over architectures one step apart, with restarts (White, Nolen and Savani 2021, algorithm 1)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from optuna.samplers import BaseSampler
from pydantic import Field

from search.strategies.replay import Replay
from search.strategies.sampler import Choices, Finished, Params, SpaceSampler
from search.strategies.steps import anything, neighbours
from search.strategies.strategy import StrategyBase, StrategyContext, strategies

Improvement = Literal["first", "best"]
Key = frozenset[tuple[str, Any]]


class _Climb:
    """Where the climb stands after some trials: the centre, the best seen since it, and the steps not yet tried."""

    def __init__(
        self,
        choices: Choices,
        improvement: Improvement,
        around: Callable[[Params, Choices], Iterable[Params]],
        allowed: Callable[[Params], bool],
    ) -> None:
        self._choices, self._improvement, self._around, self._allowed = choices, improvement, around, allowed
        self._known: set[Key] = set()
        self._centre: Finished | None = None
        self._best: Finished | None = None
        self._steps: dict[Key, Params] = {}

    def take(self, trial: Finished) -> None:
        """Move on by one finished trial."""
        key = _key(trial.params)
        if key in self._known:
            return
        over = self._centre is self._best and self._exhausted()
        self._known.add(key)
        self._steps.pop(key, None)
        if trial.score > -math.inf and (self._best is None or over):
            self._settle(trial)
            return
        if self._best is None:
            return  # given up before there was anything to climb from
        if trial.score > self._best.score:
            self._best = trial
        if self._best is not self._centre and (self._improvement == "first" or self._exhausted()):
            self._settle(self._best)

    def step(self, running: set[Key], generator: random.Random) -> Params | None:
        """Return a step that is neither tried nor under way; None where there is none."""
        steps = list(self._steps.items())
        generator.shuffle(steps)
        for key, params in steps:
            if key in running:
                continue
            if self._allowed(params):
                return params
            del self._steps[key]
        return None

    def _settle(self, trial: Finished) -> None:
        self._centre = self._best = trial
        around = {_key(params): params for params in self._around(trial.params, self._choices)}
        self._steps = {key: params for key, params in around.items() if key not in self._known}

    def _exhausted(self) -> bool:
        """Return whether no step is left; those that are not allowed are struck out until one is found that is."""
        while self._steps:
            key, params = next(iter(self._steps.items()))
            if self._allowed(params):
                return False
            del self._steps[key]
        return True


class LocalSearchSampler(SpaceSampler):
    """Evaluates what lies one step from the best architecture of the climb, and moves there if it is better.

    A climb starts at a random architecture and ends where no step is better; then another starts. Architectures that
    were evaluated before, in this climb or another, are not evaluated again.

    Args:
        improvement: "first" moves to the first better neighbour that finishes; "best" tries all neighbours first.
        others: as for `SpaceSampler`; the space's own `neighbours` and `sample` are used. Without one, a decision
            takes another choice.
    """

    def __init__(self, *args: Any, improvement: Improvement = "first", **others: Any) -> None:
        super().__init__(*args, **others)
        self.improvement = improvement
        self._climb = Replay(self._begin, _Climb.take)

    def propose(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, generator: random.Random
    ) -> Params:
        """Return a neighbour of the climb's best, or a random start."""
        climb = self._climb.after(self._history.ended or finished, choices)  # with those that were given up
        step = climb.step({_key(params) for params in running}, generator)
        return anything(choices, generator, self.space) if step is None else step

    def _begin(self, choices: Choices) -> _Climb:
        return _Climb(choices, self.improvement, self._around, self.possible)

    def _around(self, params: Params, choices: Choices) -> Iterable[Params]:
        """Return the steps from `params`: always the same ones, decisions that are newly taken drawn."""
        generator = random.Random(f"{self.seed}:{sorted(params.items())}")
        return neighbours(params, choices, self.space, generator)


def _key(params: Params) -> Key:
    return frozenset(params.items())


@strategies.register("local_search")
class LocalSearchStrategy(StrategyBase):
    """Hill climbing over architectures one step apart, with restarts."""

    name: Literal["local_search"] = "local_search"
    improvement: Improvement = Field(
        "first", description="first moves to the first better neighbour, best tries all neighbours before it moves"
    )

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler."""
        rows = None if context.candidates is None else [dict(arch) for arch in context.candidates]
        return LocalSearchSampler(
            context.distributions,
            seed=context.seed,
            feasible=context.feasible,
            candidates=rows,
            space=context.space,
            improvement=self.improvement,
        )
