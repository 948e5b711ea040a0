"""What `compress rank` runs: the part of a recipe that ends with its section `rank`, in a directory of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from compress.core.errors import InputError
from compress.core.progress import say
from compress.runs.directory import RunDirectory
from compress.runs.recipe import Recipe, differing_keys, recipe_schema
from compress.runs.stage import all_stages
from compress.runs.stages.rank import Rank, space_of, train_settings
from search.supernets.trained import FOLDER

_SHARED = ("model", "data", "task", "seed", "supernet")
"""Sections that decide what a trained supernet is."""


def ranking_of(recipe: Recipe, out: Path | None) -> tuple[Recipe, Path]:
    """Return the recipe of a ranking alone, and the directory that it is run in.

    Sections after `rank` are left out. A directory that holds another run, with the supernet of this recipe trained,
    keeps that run as it is: the ranking takes its supernet and goes to the folder `ranking` in it.

    Raises:
        InputError: the supernet that lies there is another than the recipe's.
    """
    values = recipe.resolved()
    rank = recipe.section("rank")
    sections = {stage.name: recipe.section(stage.name) for stage in all_stages()}
    train = train_settings(rank, sections) if rank.against else rank.train
    values["rank"]["train"] = None if train is None else train.model_dump(mode="json")
    space = space_of(rank, sections)
    values["rank"]["space"] = None if space is None else space[1].model_dump(mode="json")
    _fill_space(values)
    for stage in all_stages():
        if stage.order > Rank.order:
            values[stage.name] = None
    directory = out if out is not None else Path("runs") / recipe.name
    if rank.weights is not None:
        values["supernet"] = None
    else:
        other = _other_run(RunDirectory(directory), values)
        if other is not None:
            _check_supernet(values, other, directory)
            say(f"rank: the supernet of {directory} is trained already; the ranking is in {directory / 'ranking'}")
            values["supernet"], values["rank"]["weights"] = None, str(directory)
            directory /= "ranking"
    found = recipe_schema().model_validate_json(json.dumps(values), strict=True)
    found._located = recipe._located
    return found, directory


def _fill_space(values: dict[str, Any]) -> None:
    """Let the section supernet name the space that it takes from the section search, which is left out."""
    supernet, search = values.get("supernet"), values.get("search")
    if supernet is not None and supernet.get("space") is None and search is not None:
        values["supernet"] = {**supernet, "space": search["space"]}


def _other_run(directory: RunDirectory, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the recipe of the run in `directory`, if it has trained a supernet and is not a ranking of `values`."""
    if not directory.recipe.is_file() or not (directory.path / FOLDER).is_dir():
        return None
    try:
        before = yaml.safe_load(directory.recipe.read_text(encoding="utf-8"))
        _fill_space(before)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return None  # what is wrong with it is told where the directory is opened
    names = [stage.name for stage in all_stages()]
    same = all((before.get(name) is None) == (values.get(name) is None) for name in names)
    return None if same else before


def _check_supernet(values: Mapping[str, Any], before: Mapping[str, Any], directory: Path) -> None:
    ours, theirs = ({name: each.get(name) for name in _SHARED} for each in (values, before))
    keys = differing_keys(theirs, ours)
    if keys:
        raise InputError(
            f"--out  the run in {directory} has trained another supernet: {', '.join(keys)} "
            f"{'differs' if len(keys) == 1 else 'differ'}; name another directory with --out"
        )
