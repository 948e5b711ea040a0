"""Strategies: which architecture to try next. One file each; a new file is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Field

from search.strategies.strategy import StrategyBase, StrategyContext, kinds

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

if TYPE_CHECKING:
    StrategyConfig = StrategyBase
else:
    StrategyConfig = Annotated[reduce(or_, kinds), Field(discriminator="name")]
    """The section `search.strategy` of a recipe: the configs of all strategies, told apart by `name`."""


def strategy_names() -> list[str]:
    """Return the sorted names of all strategies."""
    return sorted(name for kind in kinds for name in get_args(kind.model_fields["name"].annotation))


def make_sampler(config: StrategyBase, context: StrategyContext) -> Any:
    """Return the Optuna sampler of a strategy."""
    return config.sampler(context)


__all__ = ["StrategyConfig", "StrategyContext", "make_sampler", "strategy_names"]
