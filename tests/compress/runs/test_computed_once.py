"""What a run finds out about a model is handed on to its later stages, not found out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.graph import build
from compress.runs.pipeline import run

HEAD = "version: 1\nname: once\nmodel: {source: builtin, name: cifar_resnet20}\n"
DATA = "data: {name: digits, image_size: 8, limit_train: 64, limit_test: 16}\n"
TRAINED = "train: {epochs: 1, warmup_epochs: 0}\nfinetune: {epochs: 1, warmup_epochs: 0}\n"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of parameters of each model that was traced, in order."""
    seen: list[int] = []
    trace = build.trace

    def counted(model: Any, *rest: Any) -> Any:
        seen.append(sum(value.numel() for value in model.parameters()))
        return trace(model, *rest)

    monkeypatch.setattr(build, "trace", counted)
    return seen


@pytest.mark.parametrize(
    ("prune", "times"),
    [
        ("{kind: structure, budget: {macs: 0.6}}", 1),
        ("{kind: structure, budget: {macs: 0.6}, sensitivity: true}", 1),
        ("{kind: structure, budget: {macs: 0.6}, steps: 2}", 2),
        ("[{kind: structure, criterion: magnitude, ratio: 0.2}, {kind: structure, ratio: 0.2}]", 2),
        ("[{kind: weights, sparsity: 0.5}, {kind: structure, budget: {macs: 0.6}}]", 1),
        ("{kind: weights, sparsity: 0.5}", 0),
        ("{kind: merge, fold_bn: false, beta: 1.0, max_ratio: 0.1}", 1),
        ("{kind: merge, beta: 1.0, max_ratio: 0.1}", 2),  # before training, for the globs, and with its norms folded
    ],
)
def test_a_pruning_stage_traces_its_model_once_and_takes_the_graph_of_the_check_before_training(
    traced: list[int], tmp_path: Path, prune: str, times: int
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{HEAD}{DATA}{TRAINED}prune: {prune}\n")
    result = run(recipe, out=tmp_path / "out", device="cpu")
    assert result.report["final"]["nonzero_params"] < result.report["baseline"]["params"]
    assert len(traced) == times and len(set(traced)) == times, "each was of another model"
