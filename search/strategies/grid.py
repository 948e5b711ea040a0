"""Every architecture once, in an order drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from compress.core.errors import InputError, did_you_mean
from search.optuna_internals import all_trials, queued_params
from spaces.space import Space
from spaces.tree import Tree

Params = dict[str, Any]


class GridSampler(BaseSampler):
    """Walks through a list of assignments, which need not fit into memory.

    Unlike Optuna's sampler of that name it takes conditional decisions as they are, without repeats. It needs no more
    memory than trials have been made. A trial that failed leaves its assignment to a later one.

    Args:
        count: how many assignments there are.
        at: returns assignment number 0, 1, ..., count - 1.
        seed: of the order.
    """

    def __init__(self, count: int, at: Callable[[int], Mapping[str, Any]], seed: int = 0) -> None:
        self.count, self.at, self.seed = count, at, seed
        self._generator = random.Random(seed)
        self._moved: dict[int, int] = {}
        self._order: list[Params] = []
        self._keys: dict[int, frozenset[Any]] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: all is in `sample_independent`, where the study's distributions are known."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose the first assignment that no trial has; where all are taken, one of them again."""
        taken = self._taken(study, trial)
        position = 0
        while position < self.count and frozenset(self._point(position).items()) in taken:
            position += 1
        self._chosen = self._point(position if position < self.count else trial.number % self.count)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the assignment's choice."""
        if param_name not in self._chosen:
            raise InputError(f"{param_name}: the grid has no such decision; it has {', '.join(self._chosen)}")
        return self._chosen[param_name]

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """End a loop of Optuna's with the last assignment; `trial` is not finished yet in the study."""
        if state != TrialState.FAIL and self.is_exhausted(study):
            with suppress(RuntimeError):  # what it raises where nothing loops
                study.stop()

    def is_exhausted(self, study: Study) -> bool:
        """Return whether every assignment has a trial that is finished or under way, and none is queued."""
        queued = any(trial.state == TrialState.WAITING for trial in all_trials(study))
        return not queued and len(self._taken(study, None)) >= self.count

    def _taken(self, study: Study, asked: FrozenTrial | None) -> set[frozenset[Any]]:
        """Return the assignments of all trials that have not failed, but for the one that is being asked for."""
        trials = all_trials(study)
        own = -1 if asked is None else asked.number
        return {self._key(trial) for trial in trials if trial.state != TrialState.FAIL and trial.number != own}

    def _key(self, trial: FrozenTrial) -> frozenset[Any]:
        if trial.number in self._keys:
            return self._keys[trial.number]
        params = {**queued_params(trial), **trial.params}
        key = frozenset(params.items())
        if trial.state.is_finished():
            self._keys[trial.number] = key
        return key

    def _point(self, position: int) -> Params:
        """Return the assignment at a place of the order, which is drawn no further than needed (Fisher and Yates)."""
        while len(self._order) <= position:
            here = len(self._order)
            other = self._generator.randrange(here, self.count)
            number = self._moved.get(other, other)
            self._moved[other] = self._moved.pop(here, here)
            self._order.append(dict(self.at(number)))
        return self._order[position]


def grid_of(space: Space, choices: Mapping[str, Sequence[Any]] | None, seed: int) -> GridSampler:
    """Return the sampler over all architectures of a space.

    Args:
        space: what is searched.
        choices: for some decisions, the only choices that the grid has; None: all.
        seed: of the order.

    Raises:
        InputError: a decision or choice that the space lacks.
    """
    allowed = dict(choices or {})
    for name, given in allowed.items():
        _check(space, name, given)
    if space.candidates is not None:
        rows = [row for row in space.candidates if all(row[name] in given for name, given in allowed.items())]
        if not rows:
            raise InputError("search.strategy.options.search_space: no architecture of the space has these choices")
        return GridSampler(len(rows), rows.__getitem__, seed)
    tree = space.tree
    if allowed:
        tree = Tree([replace(each, choices=tuple(allowed.get(each.name, each.choices))) for each in space.decisions])
    return GridSampler(tree.count(), tree.unrank, seed)


def _check(space: Space, name: str, given: Any) -> None:
    key = f"search.strategy.options.search_space.{name}"
    known = {decision.name: decision for decision in space.decisions}
    if name not in known:
        raise InputError(f"{key}: the space {space.name} has no such decision{did_you_mean(name, known)}")
    if not isinstance(given, list | tuple) or not given:
        raise InputError(f"{key}: a list of choices is needed; got {given!r}")
    for choice in given:
        if known[name].index(choice) < 0:
            raise InputError(f"{key}: unknown choice; got {choice!r}; allowed {list(known[name].choices)}")
    if len(set(given)) < len(given):
        raise InputError(f"{key}: a choice is there twice; got {list(given)}")
