"""What `compress cache-teacher` runs: every teacher of a recipe whose outputs are to be kept."""

from __future__ import annotations

from collections.abc import Iterator

from compress.bundle import open_model
from compress.core.environment import choose_device
from compress.core.errors import InputError
from compress.distill.cache_writer import CacheResult, cache_teacher
from compress.distill.distilled import DistilledConfig
from compress.distill.finetune import named_after
from compress.distill.teacher_cache import each_cached
from compress.runs.recipe import Recipe
from compress.runs.stage import sections_of
from compress.training.config import FitConfig
from compress.training.step import StepContext


def cache_teachers(recipe: Recipe, device: str = "auto") -> Iterator[tuple[str, CacheResult]]:
    """Run the teachers of `recipe` that have a `cache` over the batches of their trainings; yield name and result.

    Raises:
        InputError: no teacher has one, the recipe has no model that its data could be fitted to, or what
            `cache_teacher` raises.
    """
    chosen = choose_device(device)
    wanted = [
        (section.name, config, name, teacher)
        for section, config in sections_of(recipe)
        if isinstance(config, FitConfig) and isinstance(config.step_config, DistilledConfig)
        for name, teacher in each_cached(config.step_config.teachers)
    ]
    if not wanted:
        raise InputError("no teacher of the recipe has a cache; say where, such as distill.teachers.NAME.cache: FOLDER")
    data = open_model(recipe.given_model, recipe.data, recipe.seed, recipe.task).data
    if data is None:
        raise InputError("data.name: got none; a teacher needs images to be run on")
    for section, config, name, teacher in wanted:
        with named_after(section, config):
            found = cache_teacher(name, teacher, StepContext(config, data), recipe.seed, chosen)
        yield name, found
