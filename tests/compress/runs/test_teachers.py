"""A found model learns from the one that the recipe gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import compress
from compress.bundle import open_model
from compress.core.errors import InputError
from compress.runs.pipeline import RunResult
from compress.runs.recipe import load_recipe
from compress.runs.stages.train import given_model

WHOLE = "16/16-16,16-16/32-32,32-32/64-64,64-64"
GIVEN: dict[str, Any] = {
    "version": 1,
    "name": "taught",
    "model": {"source": "space", "name": "resnet_shapes", "kwargs": {"options": {"depth": 14}, "arch": WHOLE}},
    "data": {"name": "digits", "image_size": 8, "batch_size": 32, "limit_train": 128, "limit_test": 32},
    "supernet": {
        "space": {"name": "resnet_shapes", "options": {"depth": 14}},
        "method": {"name": "tas", "macs": 0.5},
        "holdout": 0.5,
        "epochs": 1,
    },
    "train": {"epochs": 1, "step": {"name": "distilled", "loss": {"loss": "kd"}}},
}


def written(folder: Path, **changed: Any) -> Path:
    path = folder / "taught.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (GIVEN | changed).items() if value is not None}))
    return path


def found_by(result: RunResult) -> Any:
    return json.loads((result.directory / "stages" / "01-supernet" / "details.json").read_text())["found"]


def test_what_is_found_learns_from_the_given_model(tmp_path: Path) -> None:
    """With and without a teacher the same network is found, and trained to other weights."""
    taught = compress.run(written(tmp_path), out=tmp_path / "taught", device="cpu")
    alone = compress.run(written(tmp_path, train={"epochs": 1}), out=tmp_path / "alone", device="cpu")
    assert found_by(taught) == found_by(alone) and found_by(taught)["space"] == "resnet_shapes"
    weights, others = (compress.load(each.directory).state_dict() for each in (taught, alone))
    assert weights.keys() == others.keys() and any(not weights[name].equal(others[name]) for name in weights)


def test_what_is_said_of_teachers_is_told_beside_what_the_export_says(tmp_path: Path) -> None:
    sections = {"prune": {"kind": "structure", "criterion": "magnitude", "ratio": 0.3}}
    path = written(tmp_path, **sections, export={"exporter": "torchscript", "opset": 17})
    result = compress.run(path, out=tmp_path / "run", device="cpu")
    details = json.loads((result.directory / "stages" / "02-dense" / "details.json").read_text())
    assert details["export"]["exporter"] == "torchscript"
    assert any(note.startswith("teacher dense: top-1") for note in details["notes"])


@pytest.mark.parametrize(
    "changed",
    [
        {"model": None},
        {"supernet": None},
        {"supernet": GIVEN["supernet"] | {"method": "single_path"}},
    ],
    ids=["no model", "nothing that finds", "a method that finds nothing"],
)
def test_without_another_model_there_is_nothing_to_learn_from(changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.step: there is no other model yet to learn from: that takes"):
        load_recipe(written(tmp_path, **changed))


def test_a_given_model_of_other_inputs_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path))
    found = open_model(recipe.given_model, recipe.data, recipe.seed, recipe.task).bundle
    teacher = given_model(found, recipe)
    assert teacher is not found.model and not teacher.training
    found.preprocessing = replace(found.preprocessing, mean=(0.1, 0.1, 0.1))
    with pytest.raises(InputError, match=r"train\.step: the section model takes other inputs .*: mean .*, not .*0\.1"):
        given_model(found, recipe)
