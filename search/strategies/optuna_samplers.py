"""Every sampler of Optuna's as a strategy."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

from optuna import Study, samplers
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from compress.errors import InputError, did_you_mean
from search.strategies.history import live_number
from search.strategies.strategy import StrategyBase, StrategyContext, strategy

_SAMPLERS: dict[str, type[BaseSampler]] = {
    "random": samplers.RandomSampler,
    "tpe": samplers.TPESampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "grid": samplers.GridSampler,
    "nsga2": samplers.NSGAIISampler,
    "nsga3": samplers.NSGAIIISampler,
    "qmc": samplers.QMCSampler,
}


@strategy
class OptunaStrategy(StrategyBase):
    """A sampler of Optuna's by name."""

    name: Literal["random", "tpe", "gp", "cmaes", "grid", "nsga2", "nsga3", "qmc"] = Field(
        description="which sampler of Optuna's"
    )
    options: dict[str, Any] = Field({}, description="arguments of the sampler, as Optuna's documentation names them")

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler, seeded; raises InputError for an argument that it does not take."""
        kind = _SAMPLERS[self.name]
        known = inspect.signature(kind).parameters
        given: dict[str, Any] = dict(self.options)
        for key in given:
            if key not in known:
                near = did_you_mean(key, known)
                raise InputError(f"search.strategy.options.{key}: {kind.__name__} takes no such argument{near}")
        if self.name == "grid":
            given.setdefault("search_space", {d.name: list(d.choices) for d in context.space.decisions})
        if "constraints_func" in known and context.feasible is not None:
            given.setdefault("constraints_func", _violations)
        seed = given.pop("seed", context.seed)

        def make(number: int) -> BaseSampler:
            # A grid's order comes from the seed, and stays.
            own = seed if self.name == "grid" else random.Random(f"{seed}:{number}").getrandbits(32)
            return kind(**{"seed": own, **given})

        try:
            make(0)
        except (TypeError, ValueError) as error:
            raise InputError(f"search.strategy.options: {kind.__name__} refuses {self.options}: {error}") from error
        return MadeAnew(make)


class MadeAnew(BaseSampler):
    """A sampler that is made anew for every trial, from the number of trials before it that did not fail.

    Optuna's own keep their random state in memory: after a restart, and in every further process, they would propose
    once more what they did before.
    """

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        self.make = make
        self.current = make(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        self.current = self.make(live_number(study.get_trials(deepcopy=False), trial))
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
        """Tell the sampler; one that has tried everything would end a loop of Optuna's, which this is not."""
        try:
            self.current.after_trial(study, trial, state, values)
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise
        except KeyError:  # a grid's own note, which a trial that was queued again lacks
            pass


def _violations(trial: Any) -> list[float]:
    """Return by how much a trial breaks each constraint, as the executors note it."""
    return [float(excess) for excess in trial.user_attrs.get("result", {}).get("violations", {}).values()]
