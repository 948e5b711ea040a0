"""Optuna's samplers on a copy of the study that suits them better than the study itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.optuna_internals import StudyCopy, note_in_study, note_in_trial, study_notes, trial_notes
from search.strategies.made_anew import MadeAnew

Space = Mapping[str, CategoricalDistribution]


class Mirror:
    """A study in memory with the trials of another, in which every trial has taken every decision.

    A decision that a trial did not take has the middle one of its choices. What samplers note in a trial (its system
    attributes) is there too. Trials that were finished when they were last looked at are not read again.
    Numbers are the study's, and so are the identities that Optuna gives trials.

    Args:
        space: all decisions.
        ordered: whether the copy holds the places of the choices, 0, 1, ..., as whole numbers.
    """

    def __init__(self, space: Space, ordered: bool) -> None:
        self.space = {name: given for name, given in space.items() if len(given.choices) > 1}
        self.ordered = ordered
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(given.choices) - 1) if ordered else given for name, given in self.space.items()
        }
        self._middle = {name: len(given.choices) // 2 for name, given in self.space.items()}
        self._begin([StudyDirection.MAXIMIZE])

    def _begin(self, directions: Sequence[StudyDirection]) -> None:
        self._directions = list(directions)
        self._copy = StudyCopy(directions)
        self._count = 0
        self._finished: set[int] = set()
        self._start = 0
        self._settled: FrozenTrial | None = None
        """The last of the first trials that are all finished, and so will not change."""

    def update(self, study: Study) -> Study:
        """Return the copy, brought up to date."""
        trials = study.get_trials(deepcopy=False)
        if not self._continues(study, trials):
            self._begin(study.directions)
        for trial in trials[self._start :]:
            self._create(trial.number)
            if trial.state.is_finished() and trial.number not in self._finished:
                self._enter(trial)
        while self._start < len(trials) and trials[self._start].number == self._start in self._finished:
            self._settled = trials[self._start]
            self._start += 1
        copied = self._copy.study()
        for key, note in study_notes(study).items():
            note_in_study(copied, key, note)
        return copied

    def copy_notes(self, study: Study, trial: FrozenTrial) -> None:
        """Write to the study what a sampler has noted in the copy, about `trial` and about the whole."""
        before = trial_notes(trial)
        for key, note in trial_notes(self.trial(trial.number)).items():
            if before.get(key) != note:
                note_in_trial(study, trial, key, note)
        known = study_notes(study)
        for key, note in study_notes(self._copy.study()).items():
            if key not in known:
                note_in_study(study, key, note)

    def trial(self, number: int) -> FrozenTrial:
        """Return the copy of trial `number`."""
        return self._copy.trial(number)

    def external(self, name: str, value: Any) -> Any:
        """Return the choice that a value in the copy stands for."""
        return self.space[name].choices[round(value)] if self.ordered else value

    def _continues(self, study: Study, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether this is the study of before; one with gaps (a pruner's part of a study) is not."""
        if study.directions != self._directions or len(trials) < self._count:
            return False
        if trials and trials[-1].number != len(trials) - 1:
            return False
        if self._settled is None:
            return True
        now = trials[self._start - 1]
        return now is self._settled or _identity(now) == _identity(self._settled)

    def _create(self, number: int) -> None:
        """Make a running trial `number`; numbers that are missing before it become failed ones."""
        while self._count <= number:
            own = self._copy.begin()
            if own < number:
                self._copy.fail(own)
            self._count += 1

    def _enter(self, trial: FrozenTrial) -> None:
        places = {name: self._place(trial.params, name) for name in self.distributions}
        self._copy.finish(trial.number, trial, places, self.distributions)
        self._finished.add(trial.number)

    def _place(self, params: Mapping[str, Any], name: str) -> int:
        try:
            return int(self.space[name].to_internal_repr(params[name]))
        except (KeyError, ValueError):  # not taken, or a choice that there is no longer
            return self._middle[name]


def _identity(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.number, trial.state, trial.datetime_complete, trial.params


class Mirrored(MadeAnew):
    """A sampler that is asked on a mirror of the study: all decisions are taken at once, in every trial.

    Optuna's samplers leave decisions to chance that are missing in one trial (of a conditional space), and some of them
    every categorical decision. What the sampler notes in the mirror is copied to the study, so that its state is there.

    Args:
        make: see `MadeAnew`.
        space: all decisions, such as `Space.distributions()`.
        ordered: whether the sampler gets the choices as an ordered scale of whole numbers.
    """

    def __init__(self, make: Callable[[int], BaseSampler], space: Space, ordered: bool) -> None:
        super().__init__(make)
        self.space = dict(space)
        self.mirror = Mirror(space, ordered)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all decisions."""
        return dict(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a choice for every decision, from the mirror."""
        shadow = self.mirror.update(study)
        own = copy.copy(self.mirror.trial(trial.number))
        own.number = self.number  # samplers make seeds of it
        values = self.current.sample_relative(shadow, own, dict(self.mirror.distributions))
        for name, distribution in self.mirror.distributions.items():
            if name not in values:
                values[name] = self.current.sample_independent(shadow, own, name, distribution)
        self.mirror.copy_notes(study, trial)
        taken = {name: given.choices[0] for name, given in self.space.items()}
        return taken | {name: self.mirror.external(name, value) for name, value in values.items()}

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Let the sampler note in the study's own trial what it notes of finished trials."""
        self.make(self.number).after_trial(study, trial, state, values)
