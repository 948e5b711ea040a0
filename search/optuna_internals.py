"""What Optuna keeps to itself and we need all the same, each use with its reason.

Nothing else of ours names anything of Optuna's that begins with an underscore, writes through a storage, or reads
attributes that Optuna sets. Tests try every use with the oldest and the newest Optuna that is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study, load_study, samplers
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_COPY = "copy"


def all_trials(study: Study) -> list[FrozenTrial]:
    """Return the trials of a study, which are not to be changed.

    The pruner Hyperband hands samplers a study whose `get_trials` leaves out most of them, and no way back to the
    whole one but its storage.
    """
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def queued_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the choices with which a trial was queued by `Study.enqueue_trial`, none where it was not.

    `FrozenTrial.params` has them only once they were asked for, and nothing else has them before.
    """
    return dict(trial_notes(trial).get("fixed_params", {}))


def study_notes(study: Study) -> dict[str, Any]:
    """Return what samplers have noted about a study: its system attributes, which have no other way in or out."""
    return study._storage.get_study_system_attrs(study._study_id)


def note_in_study(study: Study, key: str, note: Any) -> None:
    """Note something about a study as samplers do."""
    study._storage.set_study_system_attr(study._study_id, key, note)


def trial_notes(trial: FrozenTrial) -> dict[str, Any]:
    """Return what Optuna and its samplers have noted in a trial: its system attributes."""
    return dict(trial.system_attrs)


def note_in_trial(study: Study, trial: FrozenTrial, key: str, note: Any) -> None:
    """Note something in a trial as samplers do."""
    study._storage.set_trial_system_attr(trial._trial_id, key, note)


class StudyCopy:
    """A study in memory whose trials are entered as they are.

    `Study.add_trial` enters only what will not change any more, and `Study.tell` takes no parameters; here a trial
    begins in its place and is filled in when it has finished. Identities are 0, 1, ... as numbers are: samplers note
    them in trials.
    """

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self._storage = InMemoryStorage()
        self._id = self._storage.create_new_study(directions, _COPY)

    def study(self) -> Study:
        """Return the study as it is now: one that was made earlier may have kept a list of trials."""
        return load_study(study_name=_COPY, storage=self._storage, sampler=samplers.RandomSampler())

    def begin(self) -> int:
        """Enter a trial that is under way; return its number."""
        return self._storage.create_new_trial(self._id)

    def fail(self, number: int) -> None:
        """Let a trial that is under way fail."""
        self._storage.set_trial_state_values(number, TrialState.FAIL)

    def finish(
        self, number: int, like: FrozenTrial, params: Mapping[str, float], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        """Let a trial that is under way end as another one did, but for its parameters.

        Args:
            number: of the trial.
            like: has its state, values, intermediate values and notes.
            params: as storages hold them, see `BaseDistribution.to_internal_repr`.
            distributions: of the parameters.
        """
        for name, distribution in distributions.items():
            self._storage.set_trial_param(number, name, params[name], distribution)
        for key, note in trial_notes(like).items():
            self._storage.set_trial_system_attr(number, key, note)
        for step, value in like.intermediate_values.items():
            self._storage.set_trial_intermediate_value(number, step, value)
        self._storage.set_trial_state_values(number, like.state, like.values)

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial."""
        return self._storage.get_trial(number)


class QMCPoint(samplers.QMCSampler):
    """A low-discrepancy sequence whose next point hangs on a number that is given.

    Optuna counts the points asked for, and a kill between the count and the trial skips one. What its method is given
    differs between Optuna 4 and 5.

    Args:
        number: place in the sequence, from 0.
        options: arguments of `QMCSampler`.
    """

    def __init__(self, number: int, **options: Any) -> None:
        super().__init__(**options)
        self._number = number

    def _find_sample_id(self, *_args: Any, **_kwargs: Any) -> int:
        return self._number


def hypervolume(losses: NDArray[np.float64], limit: NDArray[np.float64]) -> float:
    """Return the volume that points dominate up to a limit, all of them smaller is better.

    Optuna offers it as a plot only.

    Args:
        losses: one row per point, none beyond the limit.
        limit: one value per objective.
    """
    from optuna._hypervolume import compute_hypervolume

    return float(compute_hypervolume(losses, limit))
