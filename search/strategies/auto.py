"""Our own strategy: expected improvement under a Gaussian process over decisions, in batches that grow with the study.

The first trials fill the space evenly. After that a Gaussian process (`search.surrogate`) is fitted to what is known,
and the assignments with the largest expected improvement come next: all of a table's rows or of a small space, else
changed and crossed copies of the best so far together with random ones. As a study grows, one fit serves more trials
(one in twenty of those finished), so that asking stays cheap. Every fifth fit looks for the next trials among the
neighbours of the best so far, lest a process that is wrong about them keeps away from them. Constraints that cost
nothing are checked before a trial is spent.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from optuna.samplers import BaseSampler
from pydantic import Field

from compress.core.environment import one_thread
from search.strategies.sampler import Choices, Finished, Params, SpaceSampler
from search.strategies.steps import neighbours
from search.strategies.strategy import StrategyBase, StrategyContext, strategies
from search.surrogate import Array, Encoded, Encoding, GaussianProcess

_LISTED = 8192
"""A space (or table) of at most so many assignments is looked at whole."""
_LOCAL = 5
"""Every so many fits, the neighbours of the best come first."""
_PARENTS, _CHILDREN, _STRANGERS = 20, 1500, 500
_FITTED, _TUNED = 400, 160
"""Most trials that the process is fitted to, and that its kernel is tuned on."""


class AutoSampler(SpaceSampler):
    """Expected improvement under a Gaussian process; see the module.

    Args:
        initial: trials that fill the space before the first fit.
        others: as for `SpaceSampler`.
    """

    def __init__(self, *args: Any, initial: int = 15, **others: Any) -> None:
        super().__init__(*args, **others)
        self.initial = initial
        self._ranking: tuple[tuple[bool, tuple[int, ...]], list[Params]] = ((False, ()), [])
        self._listed: tuple[Choices, list[Params], Encoded] | None = None
        self._verdicts: dict[frozenset[tuple[str, Any]], bool] = {}

    def propose(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, generator: random.Random
    ) -> Params:
        """Return the best assignment that is neither finished nor running, by the fit that is due."""
        position = len(finished) + len(running)
        if position < self.initial:
            filling = self.completed(self._filling(position, choices), choices, generator)
            return filling if self._allowed(filling) else self._random(choices, generator)
        if len(finished) < 2:
            return self._random(choices, generator)
        fit, count = _fit_due(position, self.initial)
        known = finished[:count]
        local = fit % _LOCAL == _LOCAL - 1
        basis = (local, tuple(trial.number for trial in known))
        if basis != self._ranking[0]:
            self._ranking = (basis, self._ranked(known, choices, local))
            self._verdicts = {}
        # Latest first: what this ranking proposed is found soon.
        done = dict.fromkeys([*map(_key, running), *(trial.key for trial in reversed(finished))])
        for params in self._ranking[1]:
            if not _is_done(params, done) and self._allowed(params):
                return params
        return self._random(choices, generator)

    def _allowed(self, params: Params) -> bool:
        """Return whether `params` are worth a trial; each is checked once per fit."""
        key = _key(params)
        if key not in self._verdicts:
            self._verdicts[key] = self.possible(params)
        return self._verdicts[key] and not self.was_given_up(params)

    def _random(self, choices: Choices, generator: random.Random) -> Params:
        return self.completed({}, choices, generator)

    def _filling(self, position: int, choices: Choices) -> Params:
        """Return point `position` of a Latin hypercube: each choice of a decision occurs equally often."""
        params = {}
        for name, given in choices.items():
            order = list(range(self.initial))
            random.Random(f"{self.seed}:{name}").shuffle(order)
            params[name] = given[order[position] * len(given) // self.initial]
        return params

    def _ranked(self, known: Sequence[Finished], choices: Choices, local: bool) -> list[Params]:
        """Return assignments by falling expected improvement over the best of `known`; its neighbours first, if wished.

        Neighbours differ in one decision.
        """
        generator = random.Random(f"{self.seed}:fit:{len(known)}")
        chosen = _subset(known, _FITTED, generator)
        scores = _standardised(np.array([trial.score for trial in chosen]))
        tuned_on = [chosen.index(trial) for trial in _subset(chosen, _TUNED, generator)]
        encoding = Encoding(choices)
        pool, encoded = self._pool(known, choices, encoding, generator)
        data = encoding.encode([trial.params for trial in chosen])
        with one_thread():
            mean, deviation = GaussianProcess(encoding, data, scores, tuned_on).predict(encoded)
        improvement = _expected_improvement(mean, deviation, scores.max())
        if local:
            near = {_key(params) for params in self._neighbours(known, choices, generator)}
            improvement = improvement + np.array([1e3 * (_key(params) in near) for params in pool])
        order = np.argsort(-improvement, kind="stable")
        return [pool[place] for place in order]

    def _pool(
        self, known: Sequence[Finished], choices: Choices, encoding: Encoding, generator: random.Random
    ) -> tuple[list[Params], Encoded]:
        """Return the assignments to choose from, and the same encoded."""
        if self._listed is not None and self._listed[0] == choices:
            return self._listed[1:]
        pool = self._list(choices)
        if pool is None:
            best = sorted(known, key=lambda trial: -trial.score)[:_PARENTS]
            near = [] if self.rows else self._neighbours(known, choices, generator)
            children = (self.completed(child, choices, generator) for child in _children(best, choices, generator))
            found = itertools.chain(near, children, self._strangers(choices, generator))
            pool = list({_key(params): params for params in found}.values())
            return pool, encoding.encode(pool)
        self._listed = (dict(choices), pool, encoding.encode(pool))
        return self._listed[1:]

    def _list(self, choices: Choices) -> list[Params] | None:
        """Return all assignments there are; None where those are too many."""
        if self.rows is not None:
            return list(map(dict, self.rows.rows)) if len(self.rows.rows) <= _LISTED else None
        if self.space is not None:
            return list(map(dict, self.space)) if self.space.tree.count() <= _LISTED else None
        if math.prod(map(len, choices.values())) > _LISTED:
            return None
        return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]

    def _neighbours(self, known: Sequence[Finished], choices: Choices, generator: random.Random) -> Iterator[Params]:
        """Yield what is one step from the best of `known`, which has only its decisions among `choices`."""
        best = max(known, key=lambda trial: trial.score).params
        taken = {name: best[name] for name in choices if name in best}
        return neighbours(taken, choices, self.space, generator)

    def _strangers(self, choices: Choices, generator: random.Random) -> Iterator[Params]:
        for _ in range(_STRANGERS):
            yield dict(generator.choice(self.rows.rows)) if self.rows else self._random(choices, generator)


def _children(best: Sequence[Finished], choices: Choices, generator: random.Random) -> Iterator[Params]:
    """Yield crossed and changed copies of the best: one decision always changes, others seldom."""
    for _ in range(_CHILDREN):
        parent, other = generator.choice(best).params, generator.choice(best).params
        crossed = generator.random() < 0.5
        child = {}
        for name in choices:
            source = other if crossed and generator.random() < 0.5 else parent
            if name in source:
                child[name] = source[name]
        for name in generator.sample(list(child), k=min(len(child), _changes(generator))):
            child[name] = generator.choice(choices[name])
        yield child


def _changes(generator: random.Random) -> int:
    """Return 1, 2, 3, ... with halving probability."""
    changes = 1
    while generator.random() < 0.5:
        changes += 1
    return changes


def _subset(trials: Sequence[Finished], count: int, generator: random.Random) -> list[Finished]:
    """Return at most `count` trials: the better half of them the best there are, the others at random."""
    if len(trials) <= count:
        return list(trials)
    order = sorted(trials, key=lambda trial: -trial.score)
    return order[: count // 2] + generator.sample(order[count // 2 :], count - count // 2)


def _standardised(scores: Array) -> Array:
    """Return scores with mean 0 and variance 1, outliers far below the median moved up: only the top matters."""
    median, high = np.median(scores), np.quantile(scores, 0.9)
    clipped = np.maximum(scores, median - 2 * (high - median) - 1e-12)
    spread = clipped.std()
    result: Array = (clipped - clipped.mean()) / (spread if spread > 0 else 1.0)
    return result


def _expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    from scipy.special import ndtr

    ahead = (mean - best) / deviation
    density = np.exp(-0.5 * ahead**2) / math.sqrt(2 * math.pi)
    result: Array = deviation * (ahead * ndtr(ahead) + density)
    return result


def _batch(finished: int) -> int:
    return max(1, finished // 20)


def _fit_due(position: int, initial: int) -> tuple[int, int]:
    """Return the number of the fit that serves the trial at `position`, and after how many trials it is made."""
    fit, count = 0, initial
    while count + _batch(count) <= position:
        fit, count = fit + 1, count + _batch(count)
    return fit, count


def _key(params: Params) -> frozenset[tuple[str, Any]]:
    return frozenset(params.items())


def _is_done(params: Params, done: Collection[frozenset[tuple[str, Any]]]) -> bool:
    """Return whether an equal assignment is in `done`; ones that left decisions untaken are equal if the rest is."""
    key = _key(params)
    return key in done or any(len(other) < len(key) and other <= key for other in done)


@strategies.register("auto")
class AutoStrategy(StrategyBase):
    """Expected improvement under a Gaussian process over the decisions: the fewest evaluations."""

    name: Literal["auto"] = "auto"
    initial: int = Field(15, ge=2, description="trials that fill the space evenly before the first fit")

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler; a short search spends at most a third of its trials on filling the space."""
        rows = None if context.candidates is None else [dict(arch) for arch in context.candidates]
        initial = max(2, min(self.initial, context.trials // 3))
        return AutoSampler(
            context.distributions,
            seed=context.seed,
            feasible=context.feasible,
            candidates=rows,
            space=context.space,
            initial=initial,
        )
