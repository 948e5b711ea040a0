from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import InputError
from compress.runs.directory import RunDirectory
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.resume import check_same


def recipe(**changes: Any) -> Recipe:
    return load_recipe("search_digits_mobilenetv3.yaml", {f"search.{key}": value for key, value in changes.items()})


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(recipe().to_yaml())
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
