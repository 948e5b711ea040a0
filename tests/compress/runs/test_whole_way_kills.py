"""The whole way as a process that is killed in every stage, and goes on by --resume."""

from __future__ import annotations

import json
import random
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from compress.cli import app
from compress.runs.recipe import load_recipe
from compress.runs.stage import acts_of
from tests.support.processes import Child

STEADY = Path(__file__).parents[2] / "support" / "steady_target.py"
TARGET = f"{{command: {shlex.quote(f'{shlex.quote(sys.executable)} {shlex.quote(str(STEADY))}')}}}"
FLAGS = [
    "data.limit_train=96", "data.limit_test=40", "data.batch_size=32", "data.image_size=16",
    "search.space.options.width=1.0", "search.trials=3", "search.strategy.initial=2", "search.evaluator.recalibrate=1",
    f"search.latency.measure.target={TARGET}", "search.latency.measure.seconds=0", "search.latency.measure.runs=3",
    "supernet.epochs=1", "train.epochs=1", "train.warmup_epochs=0", "finetune.epochs=1", "finetune.warmup_epochs=0",
    "prune.budget.latency=0.8", "sort.epochs=1", "sort.members=2", "sort.timed=2", "sort.bn_recalibrate=1",
    "export.exporter=torchscript", "quantize.calibration=8", "references.networks=[lcnet_035]",
    f"latency.target={TARGET}", "latency.seconds=0", "latency.runs=3", "latency.max_seconds=60",
]  # fmt: skip
"""The recipe with all of its stages, each short, on a target whose times are the same for the same file."""


def run(arguments: list[str]) -> None:
    """Run the recipe and end the process."""
    flags = [word for flag in FLAGS for word in ("--set", flag)]
    words = ["run", "--recipe", "full_pipeline.yaml", *flags, *arguments, "--device", "cpu", "--quiet"]
    sys.exit(app(words, prog_name="compress", standalone_mode=False) or 0)


def told(out: Path) -> dict[str, Any]:
    """Return report.json but for how long things took and how busy the machine was."""
    report = json.loads((out / "report.json").read_text())
    del report["environment"]
    for each in (*report["stages"], *report["references"]):
        del each["seconds"]
    return report  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_whole_way_killed_in_every_stage_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert Child(run, ["--out", str(whole)]).wait() == 0
    seconds = {
        path.parent.name: json.loads(path.read_text())["seconds"] for path in whole.glob("stages/*/details.json")
    }
    acts = acts_of(load_recipe("full_pipeline.yaml"))
    assert sorted(seconds) == sorted(act.folder for act in acts)
    generator, arguments = random.Random(0), ["--out", str(cut), "--resume"]
    for act in acts:
        process, place = Child(run, arguments), cut / "stages" / act.folder
        while not place.is_dir() and process.process.is_alive():
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.5))
        process.kill()
        assert process.wait() == -9, f"{act.folder}: it had ended by itself"
    assert Child(run, arguments).wait() == 0
    assert told(cut) == told(whole)
    one, other = (load_file(out / "bundle" / "weights.safetensors") for out in (whole, cut))
    assert one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)
    assert (cut / "model.onnx").read_bytes() == (whole / "model.onnx").read_bytes()
