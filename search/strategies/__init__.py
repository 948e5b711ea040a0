"""Strategies: which architecture to try next. One file each; a new file is found by itself."""

from __future__ import annotations

from optuna.samplers import BaseSampler

from compress.core.errors import InputError
from search.strategies.strategy import StrategyBase, StrategyConfig, StrategyContext, strategies


def make_sampler(config: StrategyBase, context: StrategyContext) -> BaseSampler:
    """Return the Optuna sampler of a strategy; InputError where a third party's gives something else."""
    sampler = config.sampler(context)
    if not isinstance(sampler, BaseSampler):
        raise InputError(f"search.strategy: {config.name} makes {sampler!r:.80}, which is no sampler of Optuna's")
    return sampler


__all__ = ["StrategyBase", "StrategyConfig", "StrategyContext", "make_sampler", "strategies"]
