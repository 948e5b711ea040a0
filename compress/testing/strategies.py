"""What a search relies on in a strategy."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from torch import nn

from compress.core.config import Config
from search.strategies import StrategyBase, StrategyContext, make_sampler
from spaces.architecture import Architecture, Decision, where
from spaces.space import Space


class Rungs(Space):
    """A space without networks: how many rungs, and how wide each is; 3 + 9 + 27 architectures."""

    Config = Config
    name = "rungs"

    def _decisions(self) -> Sequence[Decision]:
        numbers = (1, 2, 3)
        return [
            Decision("depth", numbers),
            *(Decision(f"rung{n}", (8, 16, 32), where("depth", *numbers[n - 1 :])) for n in numbers),
        ]

    def _build(self, arch: Architecture, task: Any) -> nn.Module:
        raise NotImplementedError

    def worth(self, arch: Mapping[str, Any]) -> float:
        """Return what the search is after: the sum of all widths."""
        return float(sum(value for name, value in arch.items() if name != "depth"))


def check_strategy(config: StrategyBase, trials: int = 40) -> None:
    """Let the strategy search a space of 39 architectures, alone and with four trials under way.

    Macs are the sum of all widths, which it is told before anything is evaluated, and which is what it is to find most
    of. A strategy that has nothing left to propose may end the search.

    Raises:
        InputError: it cannot serve such a search.
        AssertionError: it proposes what is no architecture, or something else for the same seed.
    """
    for workers in (1, 4):
        found, again = (_search(config, trials, workers) for _ in range(2))
        assert found == again, f"strategy {config.name} proposes other architectures for the same seed"


def _search(config: StrategyBase, trials: int, workers: int) -> list[dict[str, Any]]:
    space = Rungs(Config())
    context = StrategyContext(
        space, ("maximize",), trials=trials, seed=0, cost=lambda arch: {"macs": space.worth(arch)}
    )
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=make_sampler(config, context))
        ended = getattr(study.sampler, "is_exhausted", lambda study: False)
        order, under_way = random.Random(0), []
        while len(study.trials) < trials and not ended(study):
            trial = study.ask()
            arch = space.suggest(trial)
            assert space.check(dict(arch)) == arch, f"strategy {config.name} proposes no architecture: {dict(arch)}"
            under_way.append((trial, arch))
            if len(under_way) == workers:
                done, found = under_way.pop(order.randrange(workers))
                study.tell(done, space.worth(found))
        return [trial.params for trial in study.trials]
    finally:
        optuna.logging.set_verbosity(verbosity)
