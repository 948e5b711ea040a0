"""What is wrong with a later stage is told before time is spent on a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import compress
from compress.core.atomic import write_json
from compress.core.errors import CompressError, InputError

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
