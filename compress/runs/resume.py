"""What the recipe of a resumed run may have that the run did not begin with, and how such a run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import yaml

from compress.core.atomic import write_text
from compress.core.errors import InputError
from compress.core.progress import say
from compress.runs.directory import RunDirectory, finished_stage
from compress.runs.recipe import Recipe, differing_keys
from compress.runs.stages import stages_of

_SEARCH = "search"


def check_same(recipe: Recipe, directory: RunDirectory) -> bool:
    """Return whether a finished search of the run in `directory` has to go on, for `recipe` asks for more of it.

    Where and how long a search runs may change, the number of its trials may grow, and so may the epochs of a training
    that is not over, where its learning rate does not hang on their number. Nothing is written.

    Raises:
        InputError: the recipe differs in anything else; one sentence per key.
    """
    before = _read(directory)
    keys = [key for key in differing_keys(before, yaml.safe_load(recipe.to_yaml())) if not _only_where(key)]
    problems = []
    for key in ("search.trials", "train.epochs", "finetune.epochs"):
        if key in keys and isinstance(was := _value(before, key), int):
            keys.remove(key)
            problem = _problem(key, was, recipe, directory)
            problems += [] if problem is None else [f"--resume  {key}: {problem}; name another directory with --out"]
    if keys:
        problems.append(
            f"--resume  the run in {directory.path} has another recipe: {', '.join(keys)} differ; "
            "name another directory with --out"
        )
    if problems:
        raise InputError(*problems)
    return _goes_on(recipe, before, directory)


def go_on(recipe: Recipe, directory: RunDirectory, search_too: bool) -> None:
    """Let the run's recipe.yaml say what is run from now on; where the search goes on, discard what followed from it.

    Killed at any moment, the run can be resumed with either recipe. The caller holds the directory.
    """
    if search_too:
        say("search: goes on; the stages after it are run again")
        directory.report.unlink(missing_ok=True)  # first: without it the run counts as interrupted
        for path in (directory.path / "report.html", directory.model):
            path.unlink(missing_ok=True)
        shutil.rmtree(directory.bundle, ignore_errors=True)
        for stage in sorted((directory.path / "stages").iterdir(), reverse=True):
            (stage / "metrics.json").unlink(missing_ok=True)
            shutil.rmtree(stage, ignore_errors=True)
    if directory.recipe.read_text(encoding="utf-8") != recipe.to_yaml():
        write_text(directory.recipe, recipe.to_yaml())


def _read(directory: RunDirectory) -> dict[str, Any]:
    try:
        before = yaml.safe_load(directory.recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--resume  {directory.recipe} cannot be read; name another directory with --out") from error
    return before if isinstance(before, dict) else {}


def _only_where(key: str) -> bool:
    """Return whether a key says where or how long a search runs, and not what is searched: it may change meanwhile."""
    return key == "search.minutes" or (key.startswith("search.executor.") and not key.endswith(".storage"))


def _value(values: Mapping[str, Any], key: str) -> Any:
    section, name = key.split(".")
    return values[section].get(name)


def _problem(key: str, was: int, recipe: Recipe, directory: RunDirectory) -> str | None:
    """Return why a number may not change as it does, if it may not."""
    now = _value(recipe.resolved(), key)
    if now < was:
        return f"cannot become smaller; the run began with {was}; got {now}"
    if key == "search.trials":
        finished = finished_stage(directory.stage(1, _SEARCH)) is not None
        if finished and recipe.search is not None and not recipe.search.evaluator.resumable:
            return (
                f"cannot grow from {was} to {now}: the search is finished, and the weights that its evaluator "
                f"({recipe.search.evaluator.kind}) starts later candidates from are deleted"
            )
        return None
    section = recipe.train if key == "train.epochs" else recipe.finetune
    assert section is not None
    if not section.open_ended:
        return (
            f"cannot grow from {was} to {now}: the learning rate of every update hangs on the number of epochs "
            f"(schedule: {section.schedule}, warmup_epochs: {section.warmup_epochs}); it does not with schedule: "
            "constant or step and warmup_epochs given"
        )
    name = "dense" if key == "train.epochs" else "finetune"
    (*_, stage) = (stage for stage in stages_of(recipe) if stage.name == name)
    if finished_stage(directory.stage(stage.number, stage.name)) is not None:
        return f"cannot grow from {was} to {now}: that training is over, and its optimiser's state is deleted"
    return None


def _goes_on(recipe: Recipe, before: Mapping[str, Any], directory: RunDirectory) -> bool:
    """Return whether the search is finished, but not what `recipe` asks for: more trials, or time for those left."""
    if recipe.search is None:
        return False
    record = finished_stage(directory.stage(1, _SEARCH))
    if record is None:
        return False
    counted = record["search"]["trials"]
    short = counted["complete"] + counted["stopped"] < recipe.search.trials
    was, now = _value(before, "search.minutes"), recipe.search.minutes
    longer = was is not None and (now is None or now > was)
    return bool(recipe.search.trials > _value(before, "search.trials") or (short and longer))
