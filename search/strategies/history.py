"""The finished trials of a study, kept up to date without reading all of them again for every proposal."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, TrialState


@dataclass(frozen=True)
class Finished:
    """A finished trial: its number, its parameters, and its score (larger is better, whatever the direction)."""

    number: int
    params: dict[str, Any]
    score: float

    @cached_property
    def key(self) -> frozenset[tuple[str, Any]]:
        """The parameters as one value that sets can hold."""
        return frozenset(self.params.items())


class History:
    """Trials in the order in which they finished, for one study after the other."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._sign = 0
        self._settled: FrozenTrial | None = None
        """The last of the first trials without a gap that are all finished, and so will not change."""
        self._start = 0
        self._failed = 0
        self._later: set[int] = set()
        self._keys: list[tuple[float, int]] = []
        self.ended: list[Finished] = []
        """Complete trials, and those given up (stopped early, or of no use), which score minus infinity."""
        self.given_up: set[frozenset[tuple[str, Any]]] = set()
        """The parameters of the latter."""

    def update(self, trials: Sequence[FrozenTrial], sign: int) -> Sequence[Finished]:
        """Return what is complete among `trials` (all of a study, in order); `sign` -1 turns costs into scores."""
        if not self._continues(trials, sign):
            self._forget()
        self._sign = sign
        for trial in trials[self._start :]:
            if trial.number not in self._later and trial.state.is_finished():
                self._later.add(trial.number)
                if trial.state == TrialState.COMPLETE and trial.values:
                    self._insert(trial, sign * float(trial.values[0]))
                elif trial.state == TrialState.PRUNED:
                    self._insert(trial, -math.inf)
                    self.given_up.add(frozenset(trial.params.items()))
        self._settle(trials)
        return [trial for trial in self.ended if trial.score > -math.inf]

    def unsettled(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        """Return all trials that are not finished, and perhaps others, after `update` with the same `trials`."""
        return trials[self._start :]

    def live_number(self, trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int:
        """Return the same as the function `live_number`, after `update` with the same `trials`."""
        if self._start > trial.number:
            return live_number(trials, trial)
        return self._start - self._failed + live_number(trials[self._start :], trial)

    def _continues(self, trials: Sequence[FrozenTrial], sign: int) -> bool:
        if self._settled is None or sign != self._sign or len(trials) < self._start:
            return False
        now = trials[self._start - 1]
        return now is self._settled or _identity(now) == _identity(self._settled)

    def _insert(self, trial: FrozenTrial, score: float) -> None:
        key = (trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0, trial.number)
        place = bisect(self._keys, key)
        self._keys.insert(place, key)
        self.ended.insert(place, Finished(trial.number, trial.params, score))

    def _settle(self, trials: Sequence[FrozenTrial]) -> None:
        """Move the start past trials that will not change; a list with gaps (a pruner's part of a study) has none."""
        while self._start < len(trials) and trials[self._start].number == self._start in self._later:
            self._settled = trials[self._start]
            self._later.discard(self._start)
            self._failed += self._settled.state == TrialState.FAIL
            self._start += 1


def _identity(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.number, trial.datetime_complete, trial.params


def live_number(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int:
    """Return how many trials before `trial` did not fail: its number, had no worker ever been killed."""
    number = trial.number
    return sum(other.state != TrialState.FAIL and other.number < number for other in trials)
