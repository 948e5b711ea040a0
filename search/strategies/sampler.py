"""The base of our own strategies: Optuna samplers whose state is the study's finished trials and nothing else."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from compress.core.errors import CompressError, InputError
from search.optuna_internals import all_trials
from search.strategies.history import Finished as Finished
from search.strategies.history import History, live_number
from spaces.assignments import Rows
from spaces.space import Space, drawn_by

Params = dict[str, Any]
Choices = Mapping[str, tuple[Any, ...]]
"""For every decision, what it may take."""


class SpaceSampler(BaseSampler, ABC):
    """Proposes whole assignments of categorical decisions, from what has been evaluated so far.

    A subclass implements `propose`. It must be a function of its arguments alone (caches of what it computed from the
    same trials aside): then a restart, trials that finish out of order, failed trials and several processes sharing
    one study need no further care. Everything random in a proposal comes from the seed and the number of proposals
    made before it that did not fail, so an interrupted search goes on as it would have.

    Args:
        search_space: all decisions with their choices, such as `Space.distributions()`. None: what the finished
            trials have in common, as Optuna's own samplers do; the first trials are then random.
        seed: of everything random.
        feasible: says of an assignment whether it is worth a trial; proposals that are not are drawn again, up to
            `attempts` times.
        candidates: the only assignments there are (rows of a table); a proposal becomes the nearest of them that has
            not been evaluated, by the number of decisions that differ.
        space: says which decisions are taken, given those before; None: all are.
    """

    attempts = 200

    def __init__(
        self,
        search_space: Mapping[str, CategoricalDistribution] | None = None,
        *,
        seed: int = 0,
        feasible: Callable[[Params], bool] | None = None,
        candidates: Sequence[Params] | None = None,
        space: Space | None = None,
    ) -> None:
        self.search_space = None if search_space is None else dict(search_space)
        self.seed = seed
        self.feasible = feasible
        self.rows = None if candidates is None else Rows(candidates)
        self.space = space
        self._common = IntersectionSearchSpace()
        self._history = History()

    @abstractmethod
    def propose(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, generator: random.Random
    ) -> Params:
        """Return a choice for every decision, or for some: see `completed` for what becomes of it.

        Args:
            finished: complete trials in the order in which they finished.
            running: parameters of trials under way in other workers.
            choices: the decisions; the same for every call within a study with a given search space.
            generator: the source of everything random in this proposal.
        """

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the given search space, else what the finished trials share."""
        if self.search_space is not None:
            return dict(self.search_space)
        return self._common.calculate(study)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of `trial`."""
        if not search_space:
            return {}
        trials = study.get_trials(deepcopy=False)
        choices = {name: _choices(name, distribution) for name, distribution in search_space.items()}
        finished = self._history.update(trials, self._sign(study))
        others = [other for other in self._history.unsettled(trials) if other.number != trial.number]
        running = [other.params for other in others if other.state == TrialState.RUNNING and other.params]
        if len(trials) > trial.number:
            number = self._history.live_number(trials, trial)
        else:  # the pruner Hyperband shows a part of the study
            number = live_number(all_trials(study), trial)
        generator = random.Random(f"{self.seed}:{number}")
        params: Params = {}
        for _ in range(self.attempts):
            proposed = self._checked(self.propose(finished, running, choices, generator), choices)
            params = self.completed(proposed, choices, generator)
            if self.rows is not None:
                done = [trial.params for trial in finished] + running + list(map(dict, self._history.given_up))
                if self.rows.find(params) is None or params in done:
                    params = dict(self.rows.nearest(params, done, generator))
            if self.allowed(params):
                break
        return params

    def allowed(self, params: Params) -> bool:
        """Return whether a completed assignment is worth a trial: it is one, is feasible, and was not given up."""
        return not self.was_given_up(params) and self.possible(params)

    def possible(self, params: Params) -> bool:
        """Return whether a completed assignment is an architecture, and feasible, whatever the trials have shown."""
        if self.rows is not None and self.rows.find(params) is None:
            return False
        return self.feasible is None or self.feasible(params)

    def was_given_up(self, params: Params) -> bool:
        """Return whether a trial has shown that an assignment is of no use: it would be known, and nothing learned."""
        return frozenset(params.items()) in self._history.given_up

    def completed(self, params: Params, choices: Choices, generator: random.Random) -> Params:
        """Return the assignment that `params` stand for: what is missing is drawn, what is not taken is left out.

        Where there is no space, or it has no conditions, every decision is taken.
        """
        if self.space is None or not self.space.conditional:
            return {name: params[name] if name in params else generator.choice(choices[name]) for name in choices}
        return dict(self.space.complete(params, drawn_by(generator)))

    def _checked(self, proposed: Any, choices: Choices) -> Params:
        """Return a proposal, which may be a third party's, with the choices as the decisions have them.

        Raises CompressError where it is no mapping, or names what is no decision or no choice of one.
        """
        gave = f"search.strategy: {type(self).__name__}.propose gave"
        if not isinstance(proposed, Mapping):
            raise CompressError(f"{gave} {proposed!r:.80}; allowed: a mapping of decisions to choices")
        found: Params = {}
        for name, value in proposed.items():
            if name not in choices:
                if self.search_space is None:
                    continue  # of some of the finished trials, and not of all
                raise CompressError(f"{gave} {name!r:.80}, which is no decision; allowed: {', '.join(choices)}")
            same = [choice for choice in choices[name] if value is choice or _equal(value, choice)]
            if not same:
                raise CompressError(f"{gave} {name} = {value!r:.80}; allowed: {', '.join(map(str, choices[name]))}")
            found[name] = same[0]
        return found

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random choice for a decision that the search space lacks."""
        number = live_number(all_trials(study), trial)
        generator = random.Random(f"{self.seed}:{number}:{param_name}")
        return generator.choice(_choices(param_name, param_distribution))

    def _sign(self, study: Study) -> int:
        if len(study.directions) != 1:
            name = type(self).__name__
            raise InputError(
                f"{name} searches for one value; got {len(study.directions)} objectives (nsga2 takes several)"
            )
        return -1 if study.directions[0] == StudyDirection.MINIMIZE else 1


def _choices(name: str, distribution: BaseDistribution) -> tuple[Any, ...]:
    if not isinstance(distribution, CategoricalDistribution):
        raise InputError(f"{name}: our strategies take categorical decisions; got {type(distribution).__name__}")
    return tuple(distribution.choices)


def _equal(value: Any, choice: Any) -> bool:
    """Return whether a proposed value is a choice; numbers of NumPy and torch are equal to ours."""
    try:
        return bool(value == choice)
    except (TypeError, ValueError, RuntimeError):  # arrays
        return False
