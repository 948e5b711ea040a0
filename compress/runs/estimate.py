"""How long a run will take, from a few training steps timed before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from compress.bundle import Bundle
from compress.core.formatting import duration
from compress.runs.context import Outlook
from compress.runs.recipe import Recipe
from compress.runs.stage import Act, compares, sections_of
from compress.training.config import TrainerConfig
from evaluators.datasets import Data


def look_ahead(acts: Sequence[Act], bundle: Bundle, data: Data | None, recipe: Recipe, device: str) -> Outlook:
    """Return what the stages may look at before the run of `recipe`, which is `acts`; it starts from `bundle`."""
    left = math.prod(stage.share_left(config) for stage, config in sections_of(recipe))
    return Outlook(bundle, data, recipe, device, compares(acts), left)


def estimate(acts: Sequence[Act], outlook: Outlook, devices: int = 1) -> list[tuple[str, float]]:
    """Return (name, seconds) of the parts of `acts` that take time, where `devices` share what trains."""
    totals: dict[str, float] = {}
    for act in acts:
        among = devices if isinstance(act.config, TrainerConfig) else 1
        for name, seconds in act.stage.estimate(act, outlook):
            totals[name] = totals.get(name, 0.0) + seconds / among
    return list(totals.items())


def sentence(parts: Sequence[tuple[str, float]]) -> str:
    """Return the estimate as a line, such as `estimated 3 min: train 1 min 30 s, fine-tune 50.0 s`."""
    shown = [f"{name} {duration(seconds)}" for name, seconds in parts if seconds >= 1]
    total = duration(sum(seconds for _, seconds in parts))
    return f"estimated {total}" + (f": {', '.join(shown)}" if shown else "")
