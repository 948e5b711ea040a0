"""Trainings of supernets as processes that are killed again and again, and go on by --resume."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from compress.cli import app
from tests.support.processes import Child, kill_after

KILLS = 2
DIGITS = {"name": "digits", "image_size": 16, "batch_size": 32, "limit_train": 320, "limit_test": 50}
MOBILENET = {"name": "mobilenetv3", "preset": "tiny"}
CELLS = {"name": "nas_bench_201", "options": {"cells": 1, "channels": 4}}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "single_path": (MOBILENET, {"name": "single_path"}),
    "sandwich": (MOBILENET, {"name": "single_path", "paths": {"kind": "sandwich"}}),
    "balanced_mixture": ({"name": "pooling"}, {"name": "balanced_mixture", "models": 2}),
    "differentiable": (CELLS, {"name": "differentiable"}),
}
"""By a short name: the space, and the method with its options."""


@pytest.fixture(params=METHODS)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    space, method = METHODS[request.param]
    supernet = {
        "space": space,
        "method": method,
        "epochs": 2,
        "optimizer": "momentum",
        "lr": 0.02,
        "checkpoint_seconds": 0,
    }
    path = tmp_path / "r.yaml"
    content = {"version": 1, "name": "it", "data": DIGITS, "supernet": supernet}
    path.write_text(yaml.safe_dump(content))
    return path


def run(arguments: list[str]) -> None:
    """Run `compress run` and end the process."""
    sys.exit(app(["run", *arguments, "--device", "cpu", "--quiet"], prog_name="compress", standalone_mode=False) or 0)


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert Child(run, ["--recipe", str(recipe), "--out", str(whole)]).wait() == 0
    generator = random.Random(0)
    arguments = ["--recipe", str(recipe), "--out", str(cut), "--resume"]
    for _ in range(KILLS):
        writes = generator.randrange(1, 5)
        kill_after(Child(run, arguments), cut, "stages/*-supernet/checkpoint/**/*.pt", writes, generator)
    assert Child(run, arguments).wait() == 0
    one, other = (load_file(out / "supernet" / "weights.safetensors") for out in (whole, cut))
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)
    assert (whole / "supernet" / "supernet.json").read_text().split('"details"')[0] == (
        cut / "supernet" / "supernet.json"
    ).read_text().split('"details"')[0]
