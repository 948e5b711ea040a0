"""A distillation with modules of its own is killed again and again, as a process, and goes on by --resume."""

from __future__ import annotations

import json
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
RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "it",
    "model": {"source": "builtin", "name": "cifar_resnet20"},
    "data": {"name": "digits", "image_size": 8, "batch_size": 16, "limit_train": 128, "limit_test": 50},
    "distill": {
        "loss": [
            {"loss": "meal_v2", "discriminator": "adversarial"},
            {"loss": "dkd", "warmup_epochs": 2},
            {"loss": "feature", "layers": {"layer2": "layer2"}, "teacher": "other", "projector": "linear"},
        ],
        "teachers": {
            "dense": {},
            "other": {"model": {"source": "builtin", "name": "cifar_resnet32"}, "untrained": True, "weight": 0.5},
        },
        "epochs": 2,
        "optimizer": "momentum",
        "lr": 0.01,
        "checkpoint_seconds": 0,
    },
}


def run(arguments: list[str]) -> None:
    """Run `compress distill` and end the process."""
    sys.exit(
        app(["distill", *arguments, "--device", "cpu", "--quiet"], prog_name="compress", standalone_mode=False) or 0
    )


def last_epoch(out: Path) -> dict[str, Any]:
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    event: dict[str, Any] = [event for event in events if event["event"] == "epoch"][-1]
    return {key: value for key, value in event.items() if key not in ("time", "seconds")}


@pytest.mark.slow
def test_a_killed_distillation_ends_with_the_same_weights(tmp_path: Path) -> None:
    recipe, whole, cut = (tmp_path / name for name in ("r.yaml", "whole", "cut"))
    recipe.write_text(yaml.safe_dump(RECIPE))
    assert Child(run, ["--recipe", str(recipe), "--out", str(whole)]).wait() == 0
    generator = random.Random(0)
    arguments = ["--recipe", str(recipe), "--out", str(cut), "--resume"]
    for _ in range(KILLS):
        writes = generator.randrange(2, 6)
        kill_after(Child(run, arguments), cut, "stages/*-distill/checkpoint/**/*.pt", writes, generator)
    assert Child(run, arguments).wait() == 0
    one, other = (load_file(out / "bundle" / "weights.safetensors") for out in (whole, cut))
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)
    told = last_epoch(whole)
    assert told == last_epoch(cut)
    assert {"meal_v2_discriminator", "dkd_others", "feature_loss"} <= told.keys() and "label_loss" not in told
