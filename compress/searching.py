"""The stage `search`: find architectures, keep the best, hand the winner on as the model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.atomic import replacing, write_json, write_text
from compress.progress import say
from compress.recipe import Recipe
from compress.rundir import finish_stage, finished_stage
from search.executors import run_search
from search.job import SearchJob, make_space
from search.outcome import Found, best, counts_by_state, history, importance
from search.runner import Judge
from search.study import spent_seconds
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
    run_search(job, runner, deadline)
    study = runner.study
    found = best(runner.study, judge.space, config.keep)
    summary = _summary(runner.study)
    if summary:
        say(f"search: {summary}")
    details = {"search": {**_record(recipe, judge.space, study, found), "summary": summary}}
    place.mkdir(parents=True, exist_ok=True)
    _write_best(place, judge, found)
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
    }


def _write_best(place: Path, judge: Judge, found: list[Found]) -> None:
    """Write each of the best as a JSON file, as a picture where the space has one, and its weights where kept."""
    space = judge.space
    for rank, entry in enumerate(found, start=1):
        write_json(place / f"best{rank}.json", space.to_dict(entry.architecture))
        weights = judge.evaluator.weights_path(entry.architecture, judge.seed)
        if weights is not None and weights.is_file():
            with replacing(_weights(place, rank)) as temporary:
                shutil.copyfile(weights, temporary)
        if not isinstance(space, TableSpace):
            write_text(place / f"best{rank}.svg", space.draw(entry.architecture))


def _weights(place: Path, rank: int) -> Path:
    return place / f"best{rank}.safetensors"


def _winner(space: Space, entry: dict[str, Any], place: Path) -> ModelConfig | None:
    """Return the best architecture as a model to build, with its weights if the evaluator kept them.

    None where the space is a table of results.
    """
    if isinstance(space, TableSpace):
        return None
    choices, checkpoint = entry["choices"], None
    if _weights(place, 1).is_file():  # they fit the one encoding that all of the same network share
        choices, checkpoint = dict(space.canonical(space.check(choices))), str(_weights(place, 1).resolve())
    kwargs = {"options": entry["options"], "arch": choices}
    return ModelConfig(source="space", name=space.name, kwargs=kwargs, checkpoint=checkpoint)
