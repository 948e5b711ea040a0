"""What the recipe of a resumed run may have that the run did not begin with, and how such a run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

from compress.core.atomic import write_text
from compress.core.errors import InputError
from compress.core.progress import say
from compress.runs.directory import RunDirectory, finished_stage, holds_files
from compress.runs.recipe import Recipe, differing_keys, for_its_task, recipe_schema
from compress.runs.stage import Act, Stage, acts_of, all_stages
from evaluators.datasets import Data
from evaluators.datasets.fingerprint import fingerprint


def check_same(recipe: Recipe, directory: RunDirectory) -> Act | None:
    """Return the act of the run in `directory` that is finished and has to go on, for `recipe` asks for more of it.

    What a stage says may differ (where and how long a search runs) or grow (its trials, the epochs of a training that
    is not over), and what nothing hangs on yet may be corrected. Nothing is written.

    Raises:
        InputError: the recipe differs in anything else; one sentence per key.
    """
    before = _read(directory)
    keys = [
        key
        for key in differing_keys(before, recipe.resolved())
        if not any(_may_differ(stage, key.removeprefix(f"{stage.name}."), recipe, directory) for stage in _owners(key))
    ]
    problems = []
    for key in list(keys):
        (name, _, number) = key.partition(".")
        for stage in _owners(key):
            was = (before.get(name) or {}).get(number) if number in stage.may_grow else None
            if isinstance(was, int):
                keys.remove(key)
                problem = _problem(stage, number, was, recipe, directory)
                problems += (
                    [] if problem is None else [f"--resume  {key}: {problem}; name another directory with --out"]
                )
    if keys:
        problems.append(
            f"--resume  the run in {directory.path} has another recipe: {', '.join(keys)} "
            f"{'differs' if len(keys) == 1 else 'differ'}; "
            "name another directory with --out"
        )
    if problems:
        raise InputError(*problems)
    return _goes_on(recipe, before, directory)


def go_on(recipe: Recipe, directory: RunDirectory, again: Act | None) -> None:
    """Let the run's recipe.yaml say what is run from now on; discard what followed from `again`, the act to go on with.

    Killed at any moment, the run can be resumed with either recipe. The caller holds the directory.
    """
    if again is not None:
        say(f"{again.name}: goes on; the stages after it are run again")
        directory.report.unlink(missing_ok=True)  # first: without it the run counts as interrupted
        for path in (directory.path / "report.html", directory.model):
            path.unlink(missing_ok=True)
        shutil.rmtree(directory.bundle, ignore_errors=True)
        for act in reversed(acts_of(recipe)):
            if act.number >= again.number:
                place = directory.stage(act.number, act.name)
                (place / "metrics.json").unlink(missing_ok=True)
                shutil.rmtree(place, ignore_errors=True)
    if directory.recipe.read_text(encoding="utf-8") != recipe.to_yaml():
        write_text(directory.recipe, recipe.to_yaml())


def check_data(data: Data, directory: RunDirectory, resume: bool) -> None:
    """Note in the log what the data of a run are; raise InputError where a run that goes on began with others."""
    facts = fingerprint(data)
    before = _data_event(directory) if resume else None
    changed = [name for name, value in facts.items() if before is not None and before.get(name, value) != value]
    if changed:
        raise InputError(
            f"--resume  the {changed[0]} is not what it was when the run in {directory.path} began; "
            "bring those data back, or name another directory with --out"
        )
    if before is None:
        directory.log({"event": "data", **facts})


def _data_event(directory: RunDirectory) -> dict[str, Any] | None:
    """Return what the log says of a run's data; None where it says nothing, as those of earlier versions."""
    with suppress(OSError, ValueError):  # a line cut short by a kill, a log that was deleted
        for line in directory.log_file.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "data":
                return event
    return None


def _read(directory: RunDirectory) -> dict[str, Any]:
    """Return the run's recipe as this version reads it: an older one had fewer keys, which are at their defaults."""
    try:
        before = yaml.safe_load(directory.recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--resume  {directory.recipe} cannot be read; name another directory with --out") from error
    try:
        return for_its_task(recipe_schema().model_validate_json(json.dumps(before), strict=True)).resolved()
    except (InputError, TypeError, ValueError):  # its values are compared as they are, and what differs is named
        return before if isinstance(before, dict) else {}


def _owners(key: str) -> list[Stage[Any]]:
    """Return the stage whose section the dotted `key` is in, as a list; empty for other keys."""
    return [stage for stage in all_stages() if key.startswith(f"{stage.name}.")]


def _may_differ(stage: Stage[Any], key: str, recipe: Recipe, directory: RunDirectory) -> bool:
    """Return whether `key` of the section of `stage` may be another: in any case, or since nothing hangs on it yet."""
    if stage.may_differ(key):
        return True
    places = [(act, directory.stage(act.number, act.name)) for act in acts_of(recipe)]
    finished = [act for act, place in places if finished_stage(place) is not None]
    if any(act.stage.name == stage.name for act in finished):
        return False
    begun = any(holds_files(place) for act, place in places if act.stage.name == stage.name)
    return stage.may_be_corrected(key, begun, finished)


def _problem(stage: Stage[Any], key: str, was: int, recipe: Recipe, directory: RunDirectory) -> str | None:
    """Return why a number may not change as it does, if it may not."""
    config = recipe.section(stage.name)
    now = getattr(config, key)
    if now < was:
        return f"cannot become smaller; the run began with {was}; got {now}"
    (*_, act) = (act for act in acts_of(recipe) if act.stage.name == stage.name)
    finished = finished_stage(directory.stage(act.number, act.name)) is not None
    reason = stage.cannot_grow(key, was, config, finished)
    return None if reason is None else f"cannot grow from {was} to {now}: {reason}"


def _goes_on(recipe: Recipe, before: Mapping[str, Any], directory: RunDirectory) -> Act | None:
    """Return the first act that is finished and not done with what `recipe` asks for."""
    for act in acts_of(recipe):
        section = before.get(act.stage.name)
        record = finished_stage(directory.stage(act.number, act.name))
        if record is None or act.config is None or not isinstance(section, Mapping):
            continue
        if act.stage.goes_on(section, act.config, record):
            return act
    return None
