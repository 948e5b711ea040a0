"""Every sampler of Optuna's as a strategy."""

from __future__ import annotations

import importlib.util
import inspect
import random
import warnings
from collections.abc import Collection
from typing import Any, ClassVar, Literal

from optuna import samplers
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from pydantic import Field, ValidationInfo, field_validator

from compress.core.errors import InputError
from search.arguments import check_arguments
from search.optuna_internals import QMCPoint
from search.strategies.grid import grid_of
from search.strategies.made_anew import MadeAnew
from search.strategies.mirror import Mirrored
from search.strategies.strategy import StrategyBase, StrategyContext, strategies

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
_ORDERED = ("cmaes", "qmc")
"""Know numbers only: Optuna's own would leave every decision of a space to chance."""
_WHOLE = ("gp", "nsga2", "nsga3")
"""Leave decisions to chance that some trial has not taken."""
SEVERAL = ("gp", "grid", "nsga2", "nsga3", "qmc", "random", "tpe")
"""Take several objectives."""


@strategies.register(*_SAMPLERS)
class OptunaStrategy(StrategyBase):
    """A sampler of Optuna's by name; `grid` is every architecture once, in an order drawn from the seed."""

    several: ClassVar[Collection[str]] = SEVERAL
    name: Literal["random", "tpe", "gp", "cmaes", "grid", "nsga2", "nsga3", "qmc"] = Field(
        description="which sampler of Optuna's; cmaes (needs the package cmaes) and qmc take the choices of a decision "
        "as an ordered scale, in the space's order"
    )
    options: dict[str, Any] = Field({}, description="arguments of the sampler, as Optuna's documentation names them")

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" in info.data:
            check_arguments(_SAMPLERS[info.data["name"]], options)
        return options

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler, seeded; raises InputError for a value that it does not take."""
        self._check(context)
        known = inspect.signature(_SAMPLERS[self.name]).parameters
        given: dict[str, Any] = dict(self.options)
        seed = given.pop("seed", None)
        seed = context.seed if seed is None else seed
        if self.name == "grid":
            return grid_of(context.space, given.get("search_space"), seed)
        if self.name == "qmc":
            given.setdefault("scramble", True)  # else the sequence is the same for every seed
        if "constraints_func" in known and context.feasible is not None:
            given.setdefault("constraints_func", _violations)

        def make(number: int) -> BaseSampler:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # the user has chosen it by its name
                if self.name == "qmc":
                    return QMCPoint(number, **{"seed": seed, **given})
                return _SAMPLERS[self.name](**{"seed": random.Random(f"{seed}:{number}").getrandbits(32), **given})

        try:
            make(0)
        except (TypeError, ValueError) as error:
            refusal = f"{_SAMPLERS[self.name].__name__} refuses {self.options}: {error}"
            raise InputError(f"search.strategy.options: {refusal}") from error
        if self.name in _ORDERED or (self.name in _WHOLE and context.space.conditional):
            return Mirrored(make, context.distributions, ordered=self.name in _ORDERED)
        return MadeAnew(make)

    def _check(self, context: StrategyContext) -> None:
        if self.name == "cmaes" and len(context.directions) > 1:
            raise InputError(
                f"search.strategy.name: cmaes searches for one value; got {len(context.directions)} objectives; "
                f"allowed for several: {', '.join(SEVERAL)}"
            )
        if self.name == "cmaes" and importlib.util.find_spec("cmaes") is None:
            raise InputError("search.strategy.name: cmaes needs its package: pip install 'compress[cmaes]'")


def _violations(trial: Any) -> list[float]:
    """Return by how much a trial breaks each constraint, as the executors note it."""
    return [float(excess) for excess in trial.user_attrs.get("result", {}).get("violations", {}).values()]
