"""What is wrong with a later stage is told before time is spent on a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.bundle import open_model
from compress.core.atomic import write_json
from compress.core.errors import CompressError, InputError
from compress.export.exporters import ExportConfig
from compress.runs.stage import stages
from spaces.zoo import ModelConfig

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "early",
    "model": {"source": "builtin", "name": "cifar_resnet20"},
    "data": {"name": "digits", "image_size": 8, "limit_train": 40, "limit_test": 20, "batch_size": 20},
    "train": {"epochs": 1},
    "export": {"exporter": "torchscript"},
    "latency": {"seconds": 0.1, "max_seconds": 0.1},
}
MASKS = {"kind": "weights", "criterion": "magnitude", "sparsity": 0.5}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"latency": {"provider": "Foo"}}, "provider 'Foo' is not in this onnxruntime; allowed: .*CPUExecution"),
        ({"latency": {"target": {"command": "no-such-program -"}}}, "'no-such-program -' cannot be started"),
        ({"prune": {"kind": "structure", "budget": {"latency_ms": 1e6}}}, r"latency_ms: 1e\+06 ms removes nothing"),
        (
            {"prune": [MASKS, {"kind": "structure", "ratio": 0.5, "exclude": ["layr1"]}]},
            "prune.exclude: the pattern 'layr1' matches no layer",
        ),
        (
            {"prune": [MASKS, {"kind": "torch_pruning", "exclude": ["layr1"]}]},
            "prune.exclude: the pattern 'layr1' matches no layer",
        ),
    ],
)
def test_wrong_settings_of_later_stages_leave_nothing(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    if "torch_pruning" in str(changes):
        pytest.importorskip("torch_pruning")
    write_json(tmp_path / "recipe.yaml", RECIPE | changes)
    with pytest.raises(InputError, match=text):
        compress.run(str(tmp_path / "recipe.yaml"), out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_target_that_fails_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    write_json(tmp_path / "recipe.yaml", RECIPE | {"latency": {"target": {"command": "false"}}})
    with pytest.raises(CompressError, match="reaching what latency needs failed: latency target 'false' failed with 1"):
        compress.run(str(tmp_path / "recipe.yaml"), out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out/stages/01-dense/metrics.json").exists()


class Spectrum(nn.Module):
    """Eigenvalues, which no exporter of torch's writes."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)[:, :10]
        return torch.linalg.eigvalsh(rows[:, :, None] * rows[:, None, :])


@pytest.mark.parametrize("exporter", ["torchscript", "auto"])
def test_a_model_that_no_exporter_writes_is_told_before_a_long_training(exporter: str) -> None:
    bundle = open_model(ModelConfig(source="builtin", name="mlp", input_size=(1, 4, 4))).bundle
    stages.get("export")("export").try_out(ExportConfig(exporter="torchscript"), bundle)
    with pytest.raises(InputError, match=r"^export: the model cannot be written as ONNX, trained or not: torch"):
        stages.get("export")("export").try_out(
            ExportConfig(exporter=exporter), replace(bundle, model=Spectrum().eval())
        )


def test_long_runs_alone_are_tried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise InputError("export: not this one")

    monkeypatch.setattr(stages.get("export"), "try_out", refuse)
    write_json(tmp_path / "recipe.yaml", {key: value for key, value in RECIPE.items() if key != "latency"})
    compress.run(str(tmp_path / "recipe.yaml"), out=tmp_path / "short", device="cpu")
    monkeypatch.setattr("compress.runs.runner.LONG_SECONDS", 0.0)
    with pytest.raises(InputError, match="export: not this one"):
        compress.run(str(tmp_path / "recipe.yaml"), out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
