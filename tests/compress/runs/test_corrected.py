"""A run that failed for what its recipe says goes on once that is corrected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from compress.cli import app
from compress.core.errors import InputError
from compress.runs.directory import RunDirectory, finish_stage
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.resume import check_same
from compress.runs.stage import acts_of

STEADY = {"epochs": 1, "warmup_epochs": 0.0, "schedule": "constant"}
HALF = {"kind": "structure", "criterion": "magnitude", "ratio": 0.5, "align": 1}
CAT = "latency.target={command: cat}"  # a board that answers with what it is sent


def recipe(folder: Path, **sections: Any) -> Path:
    (folder / "tiny.py").write_text(
        "from torch import nn\n\n\n"
        "def make(num_classes=10):\n"
        "    convs = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)\n"
        "    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    path = folder / "mine.yaml"
    data = {"name": "digits", "image_size": 8, "limit_train": 60, "limit_test": 20, "batch_size": 20}
    model = {"source": "python", "name": "tiny:make", "input_size": [3, 8, 8]}
    path.write_text(yaml.safe_dump({"version": 1, "name": "mine", "model": model, "data": data, **sections}))
    return path


def run(path: Path, *flags: str) -> Any:
    call = ["run", "--recipe", str(path), "--out", str(path.parent / "out"), "--device", "cpu", *flags]
    return CliRunner().invoke(app, call)


def events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (path.parent / "out" / "log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["anew", "resume"])
def test_a_training_that_diverged_at_once_is_run_again_with_a_lower_lr(tmp_path: Path, resume: list[str]) -> None:
    path = recipe(tmp_path, train=STEADY)
    failed = run(path, "--set", "train.lr=1e30")
    assert failed.exit_code == 1 and "try a lower lr" in failed.stderr
    assert "; correct the recipe and run it again\n" in failed.stderr
    again = run(path, *resume, "--set", "train.lr=0.01")
    assert again.exit_code == 0 and "begins anew there" in again.stderr, again.stderr
    assert "error" not in events(path) and events(path)[0] == "start"
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["train"]["lr"] == 0.01


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["anew", "resume"])
def test_a_board_that_does_not_answer_is_corrected(tmp_path: Path, resume: list[str]) -> None:
    path = recipe(tmp_path, export={"exporter": "torchscript"}, latency={"runs": 3, "seconds": 0})
    failed = run(path, "--set", CAT)
    assert failed.exit_code == 1 and "correct the recipe and run it again, or go on with: compress run" in failed.stderr
    again = run(path, *resume)
    assert again.exit_code == 0, again.stderr


def test_what_a_later_stage_is_to_do_is_corrected_and_finished_stages_are_kept(tmp_path: Path) -> None:
    path = recipe(tmp_path, train=STEADY, prune=HALF, finetune=STEADY)
    failed = run(path, "--set", "finetune.lr=1e30")
    assert failed.exit_code == 1
    assert "; correct the recipe and go on with --resume, or name another directory with --out\n" in failed.stderr
    other = run(path, "--resume", "--set", "train.lr=0.02")
    assert other.exit_code == 2 and "another recipe: train.lr differs; name another" in other.stderr
    again = run(path, "--resume", "--set", "finetune.lr=0.01")
    assert again.exit_code == 0 and "dense: finished before" in again.stderr, again.stderr


def test_a_training_with_a_checkpoint_names_what_is_to_be_deleted(tmp_path: Path) -> None:
    path = recipe(tmp_path, train={**STEADY, "checkpoint_seconds": 0})
    failed = run(path, "--set", "train.lr=1e30")
    place = tmp_path / "out" / "stages" / "01-dense"
    assert failed.exit_code == 1 and f"correct the recipe, delete {place} and go on with --resume" in failed.stderr
    assert "another recipe" in run(path, "--resume").stderr
    for file in (place / "checkpoint").iterdir():
        file.unlink()
    (place / "checkpoint").rmdir()
    assert run(path, "--resume").exit_code == 0


def left(recipe: Recipe, place: Path, *finished: str) -> RunDirectory:
    """A run of the recipe of which these acts are finished."""
    directory = RunDirectory(place)
    directory.path.mkdir()
    recipe.save(directory.recipe)
    for act in acts_of(recipe):
        if act.name in finished:
            folder = directory.stage(act.number, act.name)
            folder.mkdir(parents=True)
            finish_stage(folder, act.name, 1.0, {}, {})
    return directory


def test_a_target_may_be_another_until_it_is_asked(tmp_path: Path) -> None:
    sections = {"prune": HALF, "export": {}, "latency": {"target": {"command": "cat"}}}
    path = recipe(tmp_path, **sections)
    was = load_recipe(path)
    board = load_recipe(path, {"latency.target.command": "python3 -"})
    patient = load_recipe(path, {"latency.target.timeout": 7200.0})
    longer = load_recipe(path, {"latency.runs": 7})
    directory = left(was, tmp_path / "exported", "dense", "prune", "export")
    assert check_same(board, directory) is None and check_same(patient, directory) is None
    with pytest.raises(InputError, match=r"latency\.runs differs"):
        check_same(longer, directory)
    directory = left(was, tmp_path / "measured", "dense", "prune", "export", "latency")
    with pytest.raises(InputError, match=r"latency\.target\.command differs"):
        check_same(board, directory)
    auto = {"prune.align": "auto"}
    directory = left(load_recipe(path, auto), tmp_path / "aligned", "dense", "prune")
    assert check_same(load_recipe(path, {**auto, "latency.target.timeout": 7200.0}), directory) is None
    with pytest.raises(InputError, match=r"latency\.target\.command differs"):
        check_same(load_recipe(path, {**auto, "latency.target.command": "python3 -"}), directory)


def test_a_recipe_of_the_users_own_that_lies_alone_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    path = recipe(tmp_path, prune=HALF)
    own = tmp_path / "out" / "recipe.yaml"
    own.parent.mkdir()
    path.rename(own)
    before = own.read_text()
    found = CliRunner().invoke(app, ["run", "--recipe", str(own), "--out", str(own.parent)])
    assert found.exit_code == 2 and own.read_text() == before and [*own.parent.iterdir()] == [own], found.output
