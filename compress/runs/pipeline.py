"""Run a recipe in a directory of its own; whatever happens, the user learns it in a sentence and can go on."""

from __future__ import annotations

import json
import multiprocessing
import os
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.bundle import load
from compress.core.environment import choose_devices
from compress.core.errors import CompressError, Diverged, InputError, NotWritten, in_one_line
from compress.core.modes import as_imported
from compress.core.progress import say
from compress.report import summary_of, write_report
from compress.runs.directory import RunDirectory, RunInUse, discard, holds_files, open_run
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.resume import check_same
from compress.runs.runner import Runner


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory, the contents of report.json and the line that sums it up."""

    directory: Path
    report: dict[str, Any]
    summary: str

    def load(self) -> Any:
        """Return the winner as a module in eval mode."""
        return load(self.directory)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    resume_hint: str = "the same call with resume=True",
) -> RunResult:
    """Run all stages of a recipe in a directory of their own and return the result.

    Args:
        recipe: a file, the name of a shipped recipe, a dictionary of what a file would hold, or a loaded one.
        overrides: dotted key -> value, such as `{"prune.budget.macs": 0.5}`; not with a loaded recipe.
        out: the run directory; by default `runs/<name>`.
        resume: go on with an interrupted run of the same recipe in `out`; finished stages are not repeated. What may
            have grown in the recipe meanwhile is in `compress.runs.resume`.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; several, such as `cuda:0,cuda:1`, share every training.
        resume_hint: how to go on, told to the user when the run is interrupted or fails.

    Raises:
        InputError: the recipe, its files or the directory are wrong; nothing half-done is left behind.
        CompressError: a stage failed; says where the log is and how to go on.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as the standard library itself asks
        raise InputError(
            "compress.run: this script is run again by each process that a run starts; put what runs it under "
            "if __name__ == '__main__':"
        )
    if not isinstance(overrides, Mapping | None):
        raise InputError(f"overrides: got {overrides!r:.80}; allowed: a dictionary, dotted key to value")
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, flag="overrides")
    elif overrides:
        raise InputError("overrides  give them with a recipe's file, name or dictionary; this recipe is loaded already")
    chosen = choose_devices(str(device))
    if not isinstance(out, str | os.PathLike | None):
        raise InputError(f"out: got {out!r:.80}; allowed: the path of a directory")
    directory, new = open_run(recipe, None if out is None else Path(out), resume)
    again = None if new else check_same(recipe, directory)
    if directory.report.is_file() and again is None:
        say(f"{directory.path} holds the finished run")
        return _result(directory)
    runner = Runner(recipe, directory, chosen, resume and not new, again)
    try:
        with as_imported(torch.float32):
            runner.run()
        return _result(directory)
    except RunInUse:
        raise
    except KeyboardInterrupt as error:
        _note(directory, {"event": "interrupted"})
        raise KeyboardInterrupt(f"interrupted; go on with: {resume_hint}") from error
    except InputError as error:
        if new and not directory.holds_work():
            discard(directory)
        elif isinstance(error, NotWritten):  # the recipe is right, and work is done: a disk that is full by now
            raise _failed(directory, runner, error, resume_hint) from error
        raise recipe.located(error) from error
    except (Exception, SystemExit) as error:  # whatever a stage, a library or the user's module raises
        raise _failed(directory, runner, error, resume_hint) from error
    finally:
        runner.close()


def _failed(directory: RunDirectory, runner: Runner, error: BaseException, resume_hint: str) -> CompressError:
    """Log the traceback; return what happened, where the log is and how to go on."""
    act = runner.act
    if not directory.path.is_dir():
        return CompressError(f"{act} failed: {directory.path} was removed while the run was working in it")
    what = in_one_line(error)
    _note(directory, {"event": "error", "stage": act, "error": what, "trace": traceback.format_exc()})
    further = _further(directory, runner.begun, error, resume_hint)
    return CompressError(f"{act} failed: {what}; log: {directory.log_file}; {further}")


def _further(directory: RunDirectory, begun: Path | None, error: BaseException, resume_hint: str) -> str:
    """Return what to do after a failure; the same recipe would diverge again, and what came to nothing is no loss."""
    diverged = isinstance(error, Diverged)
    if directory.is_bare():
        again = "correct the recipe and run it again"
        return again if diverged else f"{again}, or go on with: {resume_hint}"
    if not diverged:
        return f"go on with: {resume_hint}"
    elsewhere = "name another directory with --out"
    if begun is None or not holds_files(begun):
        return f"correct the recipe and go on with --resume, or {elsewhere}"
    return f"correct the recipe, delete {begun} and go on with --resume, or {elsewhere}"


def _note(directory: RunDirectory, event: dict[str, Any]) -> None:
    """Log how a run ended; a log that cannot be written, as on a full disk, does not hide why."""
    with suppress(OSError):
        directory.log(event)


def _result(directory: RunDirectory) -> RunResult:
    report = json.loads(directory.report.read_text(encoding="utf-8"))
    if not (directory.path / "report.html").is_file():
        write_report(directory.path)
    return RunResult(directory.path, report, summary_of(directory.path))
