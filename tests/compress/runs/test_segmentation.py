"""A segmenter from a recipe to its ONNX file, in small: trained, pruned, taught, exported, judged by its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import compress
from compress.cli import app
from compress.runs.evaluation import evaluate_file
from compress.runs.recipe import load_recipe

SMALL: dict[str, Any] = {
    "data.image_size": 32, "data.samples": 48, "data.test_samples": 24, "data.batch_size": 16, "train.epochs": 1,
    "train.warmup_epochs": 0, "train.evaluate_every": 0, "finetune.epochs": 1, "latency": None,
    "export.dynamic_size": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe by a criterion that takes the task's drawn loss, with few small images."""
    folder = tmp_path_factory.mktemp("segmentation") / "run"
    compress.run("prune_segmentation_digits.yaml", SMALL | {"prune.criterion": "hessian"}, out=folder)
    return folder


def test_half_of_the_macs_go_and_the_file_is_as_good_as_the_module(run: Path) -> None:
    recipe = load_recipe(run / "recipe.yaml")
    module, file = (evaluate_file(run / name, recipe) for name in ("bundle", "model.onnx"))
    assert module["miou"] == pytest.approx(file["miou"], abs=0.1)
    assert module["pixel_accuracy"] == pytest.approx(file["pixel_accuracy"], abs=0.1)
    report = json.loads((run / "report.json").read_text())
    dense, small = report["baseline"], report["final"]
    assert 0.48 <= small["macs"] / dense["macs"] <= 0.52
    assert small["miou"] == pytest.approx(module["miou"], abs=0.1)


def test_a_file_of_open_size_is_judged_at_another_size(run: Path) -> None:
    recipe = load_recipe(run / "recipe.yaml", {"data.image_size": 48})
    assert evaluate_file(run / "model.onnx", recipe)["images"] == 24


SEVEN = """
from torch import nn
def seven():
    return nn.Conv2d(3, 7, 1)
"""


def test_what_does_not_fit_is_one_sentence_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_of_seven_classes.py").write_text(SEVEN)
    monkeypatch.chdir(tmp_path)
    few = ["data.image_size=32", "data.samples=16", "data.test_samples=8"]

    def refused(flag: str) -> str:
        flags = [word for each in (*few, flag) for word in ("--set", each)]
        result = CliRunner().invoke(app, ["run", "--recipe", "prune_segmentation_digits.yaml", *flags])
        assert result.exit_code == 2, result.output
        assert not (tmp_path / "runs" / "prune_segmentation_digits" / "stages").exists()
        return " ".join(result.stderr.split())

    detector = "model={source: torchvision, name: ssdlite320_mobilenet_v3_large}"
    assert "is for task detection, the recipe for segmentation" in refused(detector)
    assert "logits (N, classes, height, width) are needed" in refused("model={source: builtin, name: cifar_resnet20}")
    seven = "model={source: python, name: 'model_of_seven_classes:seven'}"
    assert "gives 7 classes; the data has 11 (set the number in model.kwargs)" in refused(seven)
    assert "task.class_weights: got 2 weights; there are 11 classes" in refused("task.class_weights=[1, 2]")
    fixed = "model={source: timm, name: vit_tiny_patch16_224}"
    assert "logits (N, classes, height, width) are needed" in refused(fixed)
