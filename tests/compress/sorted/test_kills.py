"""Sorted trainings as processes that are killed again and again, and go on by --resume."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from compress.cli import app
from tests.support.processes import Child

DIGITS = {"name": "digits", "image_size": 16, "batch_size": 32, "limit_train": 320, "limit_test": 50}
MODELS: dict[str, dict[str, Any]] = {
    "resnet": {"model": {"source": "builtin", "name": "cifar_resnet20"}, "by": "stage", "data": "split"},
    "vit": {
        "model": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {
                "img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "drop_path_rate": 0.1,
            },
        },
        "sampling": "sandwich", "per_update": 3, "distill": {"loss": "kd"}, "ema": 0.9, "order": "taylor",
    },
}  # fmt: skip


def run(arguments: list[str]) -> None:
    """Run `compress sort` and end the process."""
    sys.exit(app(["sort", *arguments, "--device", "cpu", "--quiet"], prog_name="compress", standalone_mode=False) or 0)


def stamp(out: Path) -> int:
    """Return when the checkpoint was last written, 0 where there is none."""
    found = list(out.glob("stages/*-sort/checkpoint/**/*.pt"))
    return max((path.stat().st_mtime_ns for path in found), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_killed_sorted_training_ends_with_the_same_family(name: str, tmp_path: Path) -> None:
    section = {"members": 6, "epochs": 2, "lr": 0.002, "checkpoint_seconds": 0, "bn_recalibrate": 2, **MODELS[name]}
    recipe = tmp_path / "r.yaml"
    content = {"version": 1, "name": "it", "model": section.pop("model"), "data": DIGITS, "sort": section}
    recipe.write_text(yaml.safe_dump(content))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert Child(run, ["--recipe", str(recipe), "--out", str(whole)]).wait() == 0
    generator, arguments = random.Random(0), ["--recipe", str(recipe), "--out", str(cut), "--resume"]
    for _ in range(2):
        process = Child(run, arguments)
        before, writes, deadline = stamp(cut), 0, time.monotonic() + 120
        wanted = generator.randrange(1, 5)
        while writes < wanted and time.monotonic() < deadline and process.process.is_alive():
            now = stamp(cut)
            writes, before = writes + (now != before), now
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -9  # it had not ended by itself
    assert Child(run, arguments).wait() == 0
    for file in ("supernet/weights.safetensors", "norms.safetensors"):
        one, other = (load_file(out / "family" / file) for out in (whole, cut))
        assert one.keys() == other.keys()
        assert all(bool((one[key] == other[key]).all()) for key in one), file
    one, other = (json.loads((out / "family" / "family.json").read_text()) for out in (whole, cut))
    assert one == other
