"""`compress search` as a process that is killed again and again, and goes on by --resume."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.cli import app
from evaluators.candidates.tabular import TabularEvaluator
from search.study import open_study
from tests.support.processes import Child

KILLS = 4
TRIALS = 40


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A search over a table of 256 networks, saved with the strategy still open."""
    rows = (
        f"{a},{b},{c},{d},{90 + a - (b - 2) ** 2 + 0.5 * c * (d == 1) - 0.1 * d}\n"
        for a, b, c, d in itertools.product(range(4), repeat=4)
    )
    (tmp_path / "t.csv").write_text("a,b,c,d,accuracy\n" + "".join(rows))
    section = {
        "space": {"name": "table", "options": {"path": str(tmp_path / "t.csv"), "decisions": list("abcd")}},
        "strategy": {"name": "random"},
        "evaluator": {"kind": "tabular", "metrics": {"top1": "accuracy"}},
        "trials": TRIALS,
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "name": "it", "data": {"name": "none"}, "search": section}))
    return path


def search(arguments: list[str], log: Path) -> None:
    """Run `compress search` and end the process; every evaluation takes 10 ms and is written to `log`."""
    look_up = TabularEvaluator.evaluate

    def slow(evaluator: TabularEvaluator, arch: Any, *rest: Any) -> Any:
        time.sleep(0.01)
        with log.open("a") as file:
            file.write(arch.to_json() + "\n")
        return look_up(evaluator, arch, *rest)

    TabularEvaluator.evaluate = slow  # type: ignore[assignment, method-assign]
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    sys.exit(app(arguments, prog_name="compress", standalone_mode=False) or 0)


def finished(run: Path) -> list[tuple[Any, Any]]:
    """Return choices and values of the evaluated trials, in the order in which they finished."""
    trials = [trial for trial in trials_of(run) if trial.state.name == "COMPLETE"]
    return [(trial.params, trial.values) for trial in sorted(trials, key=lambda trial: trial.datetime_complete)]


def trials_of(run: Path) -> list[Any]:
    return open_study("it", None, run, ["maximize"]).get_trials(deepcopy=False)


def lines(run: Path) -> int:
    journal = run / "study.journal"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["{name: regularized_evolution, population: 8, sample: 3}", "{name: auto}", "{name: ppo}"]
)
def test_kills_lose_and_repeat_nothing(strategy: str, recipe: Path, tmp_path: Path) -> None:
    flags = ["search", "--recipe", str(recipe), "--set", f"search.strategy={strategy}", "--device", "cpu", "--quiet"]
    whole, run, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    assert Child(search, [*flags, "--out", str(whole)], tmp_path / "other").wait() == 0
    generator, status = random.Random(0), 0
    for _ in range(KILLS):
        before = lines(run)
        process = Child(search, [*flags, "--out", str(run), "--resume"], log)
        deadline = time.monotonic() + 60
        while lines(run) - before < generator.randrange(5, 15) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.03))
        process.kill()
        status = process.wait()
        assert status == -signal.SIGKILL  # none had ended by itself
    assert Child(search, [*flags, "--out", str(run), "--resume"], log).wait() == 0
    assert finished(run) == finished(whole)
    assert len(finished(run)) == TRIALS
    trials = trials_of(run)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    measured = [str(trial.params) for trial in trials if "seconds" in trial.user_attrs.get("result", {})]
    assert len(measured) == len(set(measured))
    assert len(log.read_text().splitlines()) <= len(measured) + KILLS  # at most the one under way at each kill
    assert (run / "report.json").is_file()
