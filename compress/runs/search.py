"""The stage `search`: find architectures, keep the best, hand the winner on as the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.bundle import open_model
from compress.core.atomic import write_json, write_text
from compress.core.errors import CompressError, InputError
from compress.core.progress import say
from compress.runs.directory import finish_stage, finished_stage
from compress.runs.recipe import Recipe
from search.job import SearchJob, make_space
from search.outcome import Found, best, counts_by_state, history, hypervolume_course, importance
from search.runner import Judge
from search.study import spent_seconds
from search.tensorboard import logged, writer_class
from spaces.space import Space
from spaces.table import TableSpace
from spaces.zoo import ModelConfig

STAGE = "search"


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its record (as details.json has it), and the winner as a model, if it can be built."""

    record: dict[str, Any]
    winner: ModelConfig | None


def search_stage(
    recipe: Recipe, run: Path, place: Path, device: str, log: Callable[[dict[str, Any]], None]
) -> SearchResult:
    """Search, or go on searching; a finished search is only read back.

    Args:
        recipe: with a section `search`.
        run: the run's directory, where the study's journal lies.
        place: the stage's directory.
        device: where candidates are trained.
        log: takes events.

    Raises:
        InputError: the parts of the section do not fit together; nothing has been evaluated then.
        CompressError: an evaluation failed, or no architecture keeps the constraints.
    """
    assert recipe.search is not None
    config = recipe.search
    done = finished_stage(place)
    if done is not None:
        say("search: finished before")
        return SearchResult(done, _winner(make_space(config.space, recipe.model), done["search"]["best"][0], place))
    started = time.monotonic()
    if config.tensorboard:
        writer_class()
    data = None if recipe.data.name == "none" else recipe.data
    job = SearchJob(config, data, recipe.model, recipe.name, recipe.seed, device, run.resolve())
    judge = job.judge()
    _say_plan(recipe, judge.space)
    runner = job.open(judge)
    revived = runner.revive()
    if revived:
        say(f"search: {revived} trial(s) of a killed worker taken up again")
    deadline = None
    if config.minutes is not None:
        deadline = time.monotonic() + max(0.0, 60 * config.minutes - spent_seconds(runner.study))
    study = runner.study
    with logged(study, config.objective.names, run / "tensorboard") if config.tensorboard else nullcontext():
        try:
            job.run(runner, deadline)
        except InputError as error:
            if counts_by_state(study)["complete"]:
                raise CompressError(str(error)) from error  # what is evaluated stays, and --resume goes on with it
            raise
    found = best(study, judge.space, config.keep)
    summary = _summary(study)
    if summary:
        say(f"search: {summary}")
    details = {"search": {**_record(recipe, judge.space, study, found), "summary": summary}}
    place.mkdir(parents=True, exist_ok=True)
    _write_best(place, recipe, judge, found)
    if not isinstance(judge.space, TableSpace) and recipe.train is None and not _bundle(place, 1).is_dir():
        say(
            "search: the winner has no trained weights; a section train, or an evaluator that keeps them, gives it some"
        )
    seconds = time.monotonic() - started
    metrics = {name: value for name, value in found[0].metrics.items()}
    log({"event": "search", **counts_by_state(study), "best": found[0].values})
    finish_stage(place, STAGE, seconds, details, metrics)
    judge.evaluator.tidy()
    record = finished_stage(place)
    assert record is not None
    return SearchResult(record, _winner(judge.space, details["search"]["best"][0], place))


def _summary(study: Any) -> str | None:
    """Return what the strategy says of the search, if it has anything to say."""
    say_so = getattr(study.sampler, "summary", None)
    return None if say_so is None else str(say_so(study))


def _say_plan(recipe: Recipe, space: Space) -> None:
    assert recipe.search is not None
    config = recipe.search
    names, strategy = ", ".join(config.objective.names), config.strategy.name
    say(f"search: {config.trials} of {space.count():,} architectures of {space.name} by {strategy} for {names}")


def _record(recipe: Recipe, space: Space, study: Any, found: list[Found]) -> dict[str, Any]:
    assert recipe.search is not None
    config = recipe.search
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


def _write_best(place: Path, recipe: Recipe, judge: Judge, found: list[Found]) -> None:
    """Write each of the best as JSON, as a picture where the space has one, as a bundle where its weights were kept."""
    space = judge.space
    for rank, entry in enumerate(found, start=1):
        write_json(place / f"best{rank}.json", space.to_dict(entry.architecture))
        weights = judge.evaluator.weights_path(entry.architecture, judge.seed)
        if weights is not None and weights.is_file():
            _write_bundle(_bundle(place, rank), recipe, space, entry, weights)
        if not isinstance(space, TableSpace):
            write_text(place / f"best{rank}.svg", space.draw(entry.architecture))


def _write_bundle(directory: Path, recipe: Recipe, space: Space, entry: Found, weights: Path) -> None:
    arch = space.canonical(entry.architecture)  # the weights fit the one encoding that all of the same network share
    bundle = open_model(_model(space, space.to_dict(arch), str(weights)), recipe.data, recipe.seed).bundle
    metrics = {name: value for name, value in entry.metrics.items() if math.isfinite(value)}
    bundle.provenance = [{"stage": STAGE, "recipe": recipe.name, "trial": entry.number, "metrics": metrics}]
    bundle.save(directory)


def _bundle(place: Path, rank: int) -> Path:
    return place / f"best{rank}"


def _model(space: Space, arch: dict[str, Any], weights: str | None = None) -> ModelConfig:
    """Return an architecture, as `Space.to_dict` writes it, as a model to build."""
    kwargs = {"options": arch["options"], "arch": arch["choices"]}
    return ModelConfig(source="space", name=space.name, kwargs=kwargs, checkpoint=weights)


def _winner(space: Space, entry: dict[str, Any], place: Path) -> ModelConfig | None:
    """Return the best architecture as a model to build, with its weights if the evaluator kept them.

    None where the space is a table of results.
    """
    if isinstance(space, TableSpace):
        return None
    bundle = _bundle(place, 1)
    return ModelConfig(source="bundle", name=str(bundle)) if bundle.is_dir() else _model(space, entry)
