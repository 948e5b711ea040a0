"""What commands say of a path that is no run and no file of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compress.cli import app
from compress.core.errors import InputError
from compress.report import compare_runs, write_report


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, a run that was killed, and one that has left no model."""
    monkeypatch.chdir(tmp_path)
    for run in ("runs/long", "runs/table"):
        (tmp_path / run / "stages" / "01-search").mkdir(parents=True)
        (tmp_path / run / "recipe.yaml").write_text("version: 1\nname: long\ndata: digits\nmodel: resnet18\n")
    (tmp_path / "runs" / "table" / "report.json").write_text("{}")
    (tmp_path / "mine.yaml").write_text("version: 1\n")
    return tmp_path


def told(*words: str) -> str:
    result: Any = CliRunner().invoke(app, [*words, "--quiet"] if words[0] != "compare" else [*words])
    assert result.exit_code == 2 and result.stdout == "", result.output
    return str(result.stderr)


ABSENT = (
    ["eval", "runs/nosuch"],
    ["eval", "runs/long/stages/01-search/best1"],
    ["eval", "runs/nosuch", "--recipe", "mine.yaml"],
    ["latency", "runs/nosuch"],
    ["export", "runs/nosuch", "--output", "out.onnx"],
    ["report", "runs/nosuch"],
    ["inspect", "runs/nosuch"],
)


@pytest.mark.parametrize("words", ABSENT, ids=" ".join)
def test_a_path_that_does_not_exist_is_said_to(words: list[str]) -> None:
    (line,) = told(*words).splitlines()
    assert words[1] in line and " does not exist" in line


@pytest.mark.parametrize("command", ["eval", "latency", "report", "inspect"])
def test_a_run_that_is_not_finished_goes_on(command: str) -> None:
    (line,) = told(command, "runs/long").splitlines()
    assert "runs/long" in line
    assert "holds a run that is not finished; go on with it by --resume" in line


def test_an_export_of_such_a_run_is_told_so_too() -> None:
    assert "not finished; go on with it by --resume" in told("export", "runs/long", "--output", "out.onnx")


@pytest.mark.parametrize("command", ["eval", "latency", "report"])
def test_a_recipe_is_no_run(command: str) -> None:
    assert "mine.yaml is a recipe; name the directory of a run of it" in told(command, "mine.yaml")


def test_comparing_says_so_of_every_kind(folder: Path) -> None:
    assert "runs/nosuch does not exist" in told("compare", "runs/nosuch", "runs/long")
    assert "not finished" in told("compare", "runs/long", "runs/nosuch")
    with pytest.raises(InputError, match="is a recipe"):
        compare_runs([folder / "mine.yaml"])
    (folder / "notes.txt").write_text("")
    with pytest.raises(InputError, match="is not a directory"):
        write_report(folder / "notes.txt")


def test_a_finished_run_without_a_model_is_no_unfinished_one() -> None:
    assert "holds no bundle.json; a bundle or a run directory is needed" in told("latency", "runs/table")


def test_names_of_models_are_no_paths() -> None:
    assert "timm has no model 'nosuch'" in told("inspect", "nosuch")
    assert "timm has no model" in told("inspect", "timm:no/such")
