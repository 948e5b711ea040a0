"""Strategies: which architecture to try next. One file each; a new file is found by itself."""

from __future__ import annotations

from optuna.samplers import BaseSampler

from search.strategies.strategy import StrategyBase, StrategyConfig, StrategyContext, strategies


def make_sampler(config: StrategyBase, context: StrategyContext) -> BaseSampler:
    """Return the Optuna sampler of a strategy."""
    return config.sampler(context)


__all__ = ["StrategyBase", "StrategyConfig", "StrategyContext", "make_sampler", "strategies"]
