"""Optuna's samplers, made to go on after a restart as they would have without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from search.optuna_internals import all_trials
from search.strategies.history import live_number


class MadeAnew(BaseSampler):
    """A sampler that is made anew for every trial, from the number of trials before it that did not fail.

    Optuna's own keep their random state in memory: after a restart, and in every further process, they would propose
    once more what they did before.
    """

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        self.make = make
        self.number = 0
        self.current = make(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        self.number = live_number(all_trials(study), trial)
        self.current = self.make(self.number)
        self.current.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Ask the sampler."""
        return self.current.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask the sampler."""
        return self.current.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Ask the sampler."""
        return self.current.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the sampler."""
        self.current.after_trial(study, trial, state, values)
