"""A process that trains beside the one of a run: it does the same act, on another device, and leaves nothing.

`python -m compress.runs.replica` is started by `compress.runs.replicated`. What the run has finished is opened from its
directory; what the act would write goes to a folder that is deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compress.core.errors import in_one_line
from compress.core.modes import as_imported
from compress.core.progress import set_quiet
from compress.runs.directory import RunDirectory
from compress.runs.recipe import load_recipe
from compress.runs.replicated import MEETING, MESSAGE, READY
from compress.runs.runner import Runner
from compress.training.replicas import joined, leave


def main() -> None:
    """Do what the first argument, a JSON object, says; exit code 1 where that fails, with a message in the folder."""
    given = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run's process ends this one
    folder, number, devices = Path(given["folder"]), int(given["number"]), given["devices"]
    threading.Thread(target=_end_with_run, args=(folder,), daemon=True).start()
    set_quiet(True)
    (folder / f"{number}.{READY}").touch()
    try:
        meeting = folder / MEETING
        with as_imported(torch.float32), joined(number, len(devices), meeting, devices[number], over=_end):
            follow(given, folder / str(number))
    except BaseException as error:
        traceback.print_exc()
        (folder / f"{number}.{MESSAGE}").write_text(in_one_line(error), encoding="utf-8")
        os._exit(1)  # not by what PyTorch does at the end, which may wait for the others


def _end() -> None:
    leave(sound=True)
    os._exit(0)


def follow(given: dict[str, Any], own: Path) -> None:
    """Do the act as the run's own process does, until what it trains is trained."""
    directory = RunDirectory(Path(given["run"]))
    recipe = load_recipe(directory.recipe)
    runner = Runner(recipe, directory, [given["devices"][given["number"]]], resume=False)
    act = runner.acts[given["act"] - 1]
    artifact = runner.before(act)
    place = own / act.folder
    place.mkdir(parents=True)
    context = replace(
        runner.context(act),
        run=own,
        directory=place,
        baseline_onnx=own / "baseline.onnx",
        model_file=own / "model.onnx",
        log=lambda event: None,
    )
    act.stage.run(artifact, act.config, context)


def _end_with_run(folder: Path) -> None:
    """End where the run's process is killed, and take away what it can no longer take away."""
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
