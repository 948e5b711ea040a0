"""What users are to know before a run, in sentences: settings that are right, but seldom what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import dropwhile

from pydantic import BaseModel

from compress.core.environment import emulates_bfloat16
from compress.runs.recipe import Recipe
from compress.runs.stage import Act, acts_of
from compress.training.config import TrainerConfig


def remarks(recipe: Recipe, acts: Sequence[Act], device: str) -> list[str]:
    """Return sentences about what the `acts` that are left of a run will do on `device`."""
    return [*_new_weights(recipe), *_slow_precision(acts, device)]


def _new_weights(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence where a model with random weights is made another, but not by a training."""
    model = recipe.model
    if model is None or model.has_weights or model.from_source.own_code or recipe.data.absent:
        return
    acts = acts_of(recipe)
    if any(act.stage.finds_model for act in acts):
        return
    since = dropwhile(lambda act: not act.stage.makes_baseline, acts)
    first = next((act for act in since if act.config is not None), None)
    if first is not None and first.stage.changes_model and not isinstance(first.config, TrainerConfig):
        yield (
            f"model: {model.name} has random weights, and nothing trains it before {first.name}: accuracies will say "
            "little; a section train, model.checkpoint or model.pretrained gives it some"
        )


def _slow_precision(acts: Sequence[Act], device: str) -> Iterator[str]:
    """Yield a sentence where some of `acts` compute in bfloat16 on a processor that has no instructions for it."""
    if not emulates_bfloat16(device):
        return
    configs = [(act.config, act.stage.name) for act in acts if act.config is not None]
    keys = dict.fromkeys(key for config, where in configs for key in _in_bfloat16(config, where))
    if keys:
        named = ", ".join(keys)
        yield f"{named}: bf16: this processor emulates it, several times slower than 32; it is meant for a GPU"


def _in_bfloat16(config: BaseModel, where: str) -> Iterator[str]:
    """Yield the keys of a section, and of those within it, that ask for bfloat16."""
    for name, value in config:
        if name == "precision" and value == "bf16":
            yield f"{where}.{name}"
        elif isinstance(value, BaseModel):
            yield from _in_bfloat16(value, f"{where}.{name}")
