"""A run that is resumed with more trials, minutes or epochs than it began with, through the command line."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from compress.cli import app
from compress.core.errors import InputError
from compress.runs.directory import RunDirectory
from compress.runs.recipe import load_recipe
from compress.runs.resume import check_same
from compress.training.trainer import Trainer
from search.executors import local

DIGITS = {"name": "digits", "image_size": 8, "limit_train": 100, "limit_test": 50, "batch_size": 20}
STEADY = {"checkpoint_seconds": 0, "schedule": "constant", "warmup_epochs": 0.0, "epochs": 2}


def table_search(folder: Path) -> Path:
    """A recipe that evaluates 10 of 216 rows."""
    rows = [(a, b, c, 80 + a * b - c) for a, b, c in itertools.product(range(6), repeat=3)]
    (folder / "table.csv").write_text("\n".join(["a,b,c,accuracy", *(",".join(map(str, row)) for row in rows)]) + "\n")
    section = {
        "space": {"name": "table", "options": {"path": str(folder / "table.csv"), "decisions": ["a", "b", "c"]}},
        "strategy": {"name": "regularized_evolution", "population": 5, "sample": 2},
        "evaluator": {"kind": "tabular", "metrics": {"top1": "accuracy"}},
        "trials": 10,
    }
    return written(folder, data={"name": "none"}, search=section)


def network_search(folder: Path) -> Path:
    """A recipe that searches, trains and exports."""
    section = {
        "space": {"name": "mobilenetv3", "preset": "tiny"},
        "strategy": {"name": "random"},
        "objective": {"maximize": ["params"]},
        "evaluator": {"kind": "proxy", "scores": ["params"]},
        "trials": 1,
    }
    return written(folder, seed=1, data=DIGITS, search=section, train=STEADY, export={"exporter": "torchscript"})


def training(folder: Path, **section: Any) -> Path:
    """A recipe that trains a small network for two epochs."""
    model = {"source": "builtin", "name": "cifar_resnet20"}
    return written(folder, model=model, data={**DIGITS, "image_size": 16}, train=STEADY | section)


def written(folder: Path, **sections: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "name": "grown", **sections}))
    return path


def command(recipe: Path, out: Path, *more: str) -> Any:
    kind = "search" if "search" in yaml.safe_load(recipe.read_text()) else "run"
    return CliRunner().invoke(app, [kind, "--recipe", str(recipe), "--out", str(out), "--device", "cpu", *more])


def finish(recipe: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run to the end; return report.json."""
    result = command(recipe, out, *more)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads((out / "report.json").read_text()))


def searched(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "stages" / "01-search" / "details.json").read_text())["search"])


def kept(out: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((out / "recipe.yaml").read_text()))


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_finished_search_goes_on_to_more_trials_as_if_it_had_begun_with_them(tmp_path: Path) -> None:
    recipe, out = table_search(tmp_path), tmp_path / "run"
    first = finish(recipe, out)
    report = finish(recipe, out, "--resume", "--set", "search.trials=25")
    finish(recipe, tmp_path / "whole", "--set", "search.trials=25")
    values = [[trial["values"] for trial in searched(place)["history"]] for place in (out, tmp_path / "whole")]
    assert len(values[0]) == 25 and values[0] == values[1]
    assert kept(out)["search"]["trials"] == 25
    assert report["recipe_sha256"] != first["recipe_sha256"]
    again = command(recipe, out, "--resume", "--set", "search.trials=25")
    assert again.exit_code == 0 and "holds the finished run" in again.stderr


def test_fewer_trials_or_another_seed_are_refused_by_name_and_change_nothing(tmp_path: Path) -> None:
    recipe, out = table_search(tmp_path), tmp_path / "run"
    finish(recipe, out)
    before = contents(out)
    for flag, words in (
        ("search.trials=5", "--resume  search.trials: cannot become smaller; the run began with 10; got 5;"),
        ("search.strategy.sample=3", "another recipe: search.strategy.sample differ"),
        ("seed=1", "another recipe: seed differ"),
    ):
        result = command(recipe, out, "--resume", "--set", flag)
        assert result.exit_code == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1
    assert contents(out) == before
    damaged = (out / "recipe.yaml").read_text().replace("trials: 10", "trials: many")
    (out / "recipe.yaml").write_text(damaged)
    result = command(recipe, out, "--resume")
    assert result.exit_code == 2 and "search.trials differ" in result.stderr


def test_a_search_that_ran_out_of_time_goes_on_with_more_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = table_search(tmp_path), tmp_path / "run"
    clock = iter([0.0] * 5)
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: next(clock, float("inf"))))
    finish(recipe, out, "--set", "search.minutes=1.0")
    monkeypatch.undo()
    assert searched(out)["trials"]["complete"] == 5
    for minutes, trials in (("0.5", 5), ("2.0", 10)):
        finish(recipe, out, "--resume", "--set", f"search.minutes={minutes}")
        assert searched(out)["trials"]["complete"] == trials
    assert kept(out)["search"]["minutes"] == 2.0


def test_stages_after_a_grown_search_are_run_again_on_its_winner(tmp_path: Path) -> None:
    recipe, out = network_search(tmp_path), tmp_path / "run"
    small = finish(recipe, out)
    grown = finish(recipe, out, "--resume", "--set", "search.trials=12")
    best = searched(out)["best"][0]
    assert best["trial"] >= 1  # the seed is such that a later one is larger
    assert grown["final"]["params"] > small["final"]["params"]
    assert finish(recipe, tmp_path / "whole", "--set", "search.trials=12")["final"] == grown["final"]


def test_a_search_may_grow_while_the_training_after_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = network_search(tmp_path), tmp_path / "run"
    interrupt(monkeypatch, after=1)
    assert command(recipe, out).exit_code == 1
    monkeypatch.undo()
    assert list(out.rglob("training.pt"))
    grown = finish(recipe, out, "--resume", "--set", "search.trials=12")
    assert finish(recipe, tmp_path / "whole", "--set", "search.trials=12")["final"] == grown["final"]


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let training fail when `after` epochs are over."""
    whole = Trainer._epoch

    def epoch(self: Any) -> None:
        if self.position.epoch == after:
            raise RuntimeError("the machine went away")
        whole(self)

    monkeypatch.setattr(Trainer, "_epoch", epoch)


@pytest.mark.parametrize("schedule", [{}, {"schedule": "step", "decay_epochs": [1]}])
def test_a_training_under_way_goes_on_to_more_epochs_where_the_schedule_allows(
    schedule: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = training(tmp_path, **schedule), tmp_path / "run"
    interrupt(monkeypatch, after=1)
    assert command(recipe, out).exit_code == 1
    monkeypatch.undo()
    log = out / "log.jsonl"  # the first session began in 2001
    log.write_text(re.sub(r'"\d{4}(-\S+", "event": "(?:start|stage)")', r'"2001\1', log.read_text()))
    grown = finish(recipe, out, "--resume", "--set", "train.epochs=4")
    assert grown["stages"][0]["seconds"] > 3600
    assert kept(out)["train"]["epochs"] == 4
    assert finish(recipe, tmp_path / "whole", "--set", "train.epochs=4")["final"] == grown["final"]


def test_epochs_that_may_not_grow_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steady = training(tmp_path)
    finish(steady, tmp_path / "over")
    over = command(steady, tmp_path / "over", "--resume", "--set", "train.epochs=4")
    fewer = command(steady, tmp_path / "over", "--resume", "--set", "train.epochs=1")
    shutil.rmtree(tmp_path / "over")
    interrupt(monkeypatch, after=1)
    falling = training(tmp_path, schedule="cosine")
    command(falling, tmp_path / "falling")
    hangs = command(falling, tmp_path / "falling", "--resume", "--set", "train.epochs=4")
    for result, words in (
        (over, "train.epochs: cannot grow from 2 to 4: that training is over, and its optimiser's state is deleted"),
        (fewer, "train.epochs: cannot become smaller; the run began with 2; got 1"),
        (hangs, "hangs on the number of epochs (schedule: cosine, warmup_epochs: 0.0)"),
    ):
        assert result.exit_code == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_run_of_an_older_version_had_the_norm_of_magnitude_among_the_options_of_every_criterion(
    tmp_path: Path,
) -> None:
    model = {"source": "builtin", "name": "cifar_resnet20"}
    prune = {"kind": "structure", "criterion": "lamp", "ratio": 0.3, "align": 4}
    path = written(tmp_path, model=model, data={"name": "none"}, prune=prune)
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    recipe = load_recipe(path)
    for options, keys in (({"norm": 2}, None), ({"norm": 1}, "prune.options.norm differ")):
        older = recipe.resolved()
        older["prune"]["options"] = options
        directory.recipe.write_text(yaml.safe_dump(older))
        if keys is None:
            assert check_same(recipe, directory) is None
        else:
            with pytest.raises(InputError, match=keys):
                check_same(recipe, directory)


def test_stages_behind_one_that_is_run_again_are_run_again_too(tmp_path: Path) -> None:
    prune = {"kind": "structure", "criterion": "magnitude", "budget": {"macs": 0.6}, "align": 1}
    model = {"source": "builtin", "name": "mlp"}
    recipe = written(tmp_path, model=model, data={**DIGITS, "image_size": 8}, train={"epochs": 1}, prune=prune)
    out = tmp_path / "run"
    finish(recipe, out)
    (out / "report.json").unlink()
    shutil.rmtree(out / "stages" / "01-dense")
    result = command(recipe, out, "--resume")
    assert result.exit_code == 0 and "prune: stands on what was run again, so it is, too" in result.stderr
    assert (out / "stages" / "01-dense" / "metrics.json").is_file() and (out / "report.json").is_file()


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        images = np.random.default_rng(seed).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
        labels = np.arange(30) % 3
        np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    data = {"name": "npz", "path": str(tmp_path / "data.npz"), "batch_size": 10}
    recipe = written(tmp_path, model={"source": "builtin", "name": "mlp"}, data=data, train={"epochs": 1})
    out = tmp_path / "run"
    write(0)
    finish(recipe, out)
    (out / "report.json").unlink()
    write(1)
    before = contents(out)
    result = command(recipe, out, "--resume")
    assert result.exit_code == 2 and "--resume  the train data is not what it was when the run in" in result.stderr
    assert {name for name, content in contents(out).items() if content != before.get(name)} <= {"log.jsonl"}
    write(0)
    finish(recipe, out, "--resume")
