"""ResNet-56 at half of its MACs without any training: what compensation gives back, on 1,000 real test images."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from compress.bundle import open_model
from compress.export.exporters import ExportConfig
from compress.prune.kinds import Surroundings, prune_bundle
from compress.runs.recipe import load_recipe
from evaluators.latency.measure import LatencyConfig
from evaluators.tasks.evaluation import evaluate


@pytest.mark.slow
def test_resnet56_at_half_of_its_macs(shared_data: Path, cifar10_npz: Path) -> None:
    weights = shared_data / "weights/cifar10_resnet/resnet56.safetensors"
    flags = {"data.path": str(cifar10_npz), "model.checkpoint": str(weights)}
    flags |= {"data.limit_train": 1536, "data.limit_test": 1000}  # two thirds of the former are fitted to
    recipe = load_recipe("resnet56_cifar10.yaml", flags)
    opened = open_model(recipe.model, recipe.data, recipe.seed, recipe.task)
    data = opened.data
    assert data is not None and data.test is not None
    around = Surroundings(data, "cpu", recipe.seed, LatencyConfig(), ExportConfig())
    started = time.process_time()
    small, details = prune_bundle(opened.bundle, recipe.section("prune"), around)
    seconds = time.process_time() - started
    done = details["compensation"]
    assert done["kept"]
    assert not done["left"]
    assert len(done["layers"]) == 28  # the second convolution of every block, and the last layer
    assert all(layer["after"] <= layer["before"] for layer in done["layers"])
    found = evaluate(small.model, data.test, data.task)["top1"]
    assert found is not None
    print(f"top-1 {found:.2f} in {seconds:.0f} CPU seconds, output error {done['error']}")
    assert done["error"]["compensated"] < done["error"]["plain"] / 2
    assert found >= 90.5  # batch norms re-estimated only: 86.0
