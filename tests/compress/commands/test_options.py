"""What happens to the arguments of every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from compress.bundle_files import find
from compress.commands.options import guarded
from compress.core.errors import InputError
from compress.runs.directory import open_run
from compress.runs.recipe import load_recipe


def test_paths_may_begin_with_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    @guarded
    def command(**given: Any) -> dict[str, Any]:
        return given

    found = command(out=Path("~/a"), runs=[Path("~/b"), Path("c")], recipe="~/d", seed=1)
    assert found == {"out": tmp_path / "a", "runs": [tmp_path / "b", Path("c")], "recipe": "~/d", "seed": 1}


def test_so_may_those_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe: Any = None
    assert open_run(recipe, Path("~/a"), False)[0].path == tmp_path / "a"
    with pytest.raises(InputError, match=f"'{tmp_path}/b' does not exist"):
        find(Path("~/b"), "bundle")


def test_a_user_that_there_is_not_is_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    stranger = Path("~nobody-of-that-name/a")

    @guarded
    def command(out: Path) -> Path:
        return out

    assert command(out=stranger) == stranger
    assert open_run(cast(Any, None), stranger, False)[0].path == stranger
    with pytest.raises(InputError, match="does not exist"):
        find(stranger, "bundle")
    with pytest.raises(InputError, match=r"~nobody-of-that-name"):
        load_recipe(f"{stranger}.yaml")
