from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.core.errors import InputError
from compress.runs.directory import RunDirectory, RunInUse, open_run
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.resume import check_same


def recipe(**changes: Any) -> Recipe:
    return load_recipe("search_digits_mobilenetv3.yaml", {f"search.{key}": value for key, value in changes.items()})


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(recipe().to_yaml())
    (tmp_path / "stages" / "01-search").mkdir(parents=True)
    (tmp_path / "stages" / "01-search" / "study.journal").write_text("")
    return tmp_path


def test_a_search_may_be_resumed_elsewhere(interrupted: Path) -> None:
    on_ray = recipe(executor={"kind": "ray", "address": "10.0.0.1:6379", "workers": 8}, minutes=30.0)
    assert check_same(on_ray, RunDirectory(interrupted)) is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"strategy": {"name": "random"}}, r"search\.strategy"),
        ({"executor": {"kind": "local", "storage": "sqlite:///other.db"}}, r"search\.executor\.storage"),
    ],
)
def test_what_decides_the_trials_may_not_change(interrupted: Path, change: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=rf"another recipe: {key}"):
        check_same(recipe(**change), RunDirectory(interrupted))


def test_keys_that_an_older_version_did_not_have_were_at_their_defaults(interrupted: Path) -> None:
    values = yaml.safe_load((interrupted / "recipe.yaml").read_text())
    del values["task"], values["search"]["keep"], values["train"]["ema"]
    (interrupted / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert check_same(recipe(), RunDirectory(interrupted)) is None
    with pytest.raises(InputError, match=r"another recipe: search\.keep differ"):
        check_same(recipe(keep=3), RunDirectory(interrupted))


def test_a_run_under_way_is_not_called_interrupted(interrupted: Path) -> None:
    directory = RunDirectory(interrupted)
    with pytest.raises(InputError, match="holds an interrupted run"):
        open_run(recipe(), interrupted, resume=False)
    lock = directory.hold()
    with pytest.raises(RunInUse, match="another process is running in"):
        open_run(recipe(), interrupted, resume=False)
    directory.let_go(lock)


def test_a_run_that_came_to_nothing_holds_no_directory(interrupted: Path) -> None:
    (interrupted / "stages" / "01-search" / "study.journal").unlink()
    with pytest.raises(InputError, match="holds an interrupted run"):  # a recipe alone may be the user's
        open_run(recipe(), interrupted, resume=False)
    RunDirectory(interrupted).log({"event": "begun"})
    assert open_run(recipe(), interrupted, resume=False)[1]
    assert open_run(recipe(keep=3), interrupted, resume=True)[1]
    assert not open_run(recipe(), interrupted, resume=True)[1]
    (interrupted / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds an interrupted run"):
        open_run(recipe(), interrupted, resume=False)
