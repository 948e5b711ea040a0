"""What a search leaves: its record, the best architectures as files, and the winner as a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from optuna import Study

from compress.bundle import open_model, saved
from compress.core.atomic import write_json, write_text
from compress.runs.recipe import Recipe
from search.config import SearchConfig
from search.judge import Judge
from search.outcome import Found, counts_by_state, history, hypervolume_course, importance
from spaces.space import Space
from spaces.table import TableSpace
from spaces.zoo import ModelConfig


def strategy_summary(study: Study) -> str | None:
    """Return what the strategy says of the search, if it has anything to say."""
    say_so = getattr(study.sampler, "summary", None)
    return None if say_so is None else str(say_so(study))


def leave_behind(study: Study, run: Path) -> None:
    """Let the strategy write what it has learnt to the directory of the run, if it has learnt anything."""
    leave = getattr(study.sampler, "leave", None)
    if leave is not None:
        leave(study, run)


def search_record(config: SearchConfig, space: Space, study: Study, found: list[Found]) -> dict[str, Any]:
    """Return what the report knows of a search: what was asked for, every trial, and the best."""
    return {
        "space": space.name,
        "architectures": str(space.count()),
        "strategy": config.strategy.name,
        "objective": list(config.objective.names),
        "directions": list(config.objective.directions),
        "trials": counts_by_state(study),
        "best": [
            {
                "trial": entry.number,
                "values": list(entry.values),
                "metrics": entry.metrics,
                **space.to_dict(entry.architecture),
            }
            for entry in found
        ],
        "history": history(study),
        "importance": importance(study),
        "hypervolume": hypervolume_course(study),
    }


def write_best(place: Path, recipe: Recipe, judge: Judge, found: list[Found]) -> bool:
    """Write each of the best as JSON, as a picture where the space has one, as a bundle where its weights were kept.

    Returns whether the first of them has its weights.
    """
    space = judge.space
    for rank, entry in enumerate(found, start=1):
        write_json(place / f"best{rank}.json", space.to_dict(entry.architecture))
        weights = judge.evaluator.weights_path(entry.architecture, judge.seed)
        if weights is not None and weights.is_file():
            _write_bundle(_bundle(place, rank), recipe, space, entry, weights)
        if not isinstance(space, TableSpace):
            write_text(place / f"best{rank}.svg", space.draw(entry.architecture))
    return _bundle(place, 1).is_dir()


def _write_bundle(directory: Path, recipe: Recipe, space: Space, entry: Found, weights: Path) -> None:
    arch = space.canonical(entry.architecture)  # the weights fit the one encoding that all of the same network share
    model = as_model(space.name, space.to_dict(arch), str(weights))
    bundle = open_model(model, recipe.data, recipe.seed, recipe.task).bundle
    metrics = {name: value for name, value in entry.metrics.items() if math.isfinite(value)}
    bundle.provenance = [{"stage": "search", "recipe": recipe.name, "trial": entry.number, "metrics": metrics}]
    bundle.save(directory)


def _bundle(place: Path, rank: int) -> Path:
    return place / f"best{rank}"


def as_model(space: str, arch: dict[str, Any], weights: str | None = None) -> ModelConfig:
    """Return an architecture, as `Space.to_dict` writes it, as a model to build."""
    kwargs = {"options": arch["options"], "arch": arch["choices"]}
    return ModelConfig(source="space", name=space, kwargs=kwargs, checkpoint=weights)


def winner(space: Space, entry: dict[str, Any], place: Path) -> ModelConfig | None:
    """Return the best architecture as a model to build, with its weights if the evaluator kept them.

    None where the space is a table of results.
    """
    if isinstance(space, TableSpace):
        return None
    bundle = _bundle(place, 1)
    return saved(bundle) if bundle.is_dir() else as_model(space.name, entry)
