"""What a run finds out about a model is handed on to its later stages, not found out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.graph import build
from compress.graph.known import Known
from compress.prune import structure
from compress.runs.dry_run import dry_run
from compress.runs.inspection import inspect_model
from compress.runs.pipeline import run
from compress.runs.recipe import load_recipe
from evaluators import cost

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


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each time that units were scored."""
    times: list[None] = []
    score_units = structure.score_units

    def counted(*given: Any) -> Any:
        times.append(None)
        return score_units(*given)

    monkeypatch.setattr(structure, "score_units", counted)
    return times


@pytest.fixture
def counted_macs(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each forward pass that counted MACs."""
    passes: list[None] = []
    counter = cost._counter

    def counted() -> Any:
        passes.append(None)
        return counter()

    monkeypatch.setattr(cost, "_counter", counted)
    return passes


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
    traced: list[int], scored: list[None], tmp_path: Path, prune: str, times: int
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{HEAD}{DATA}{TRAINED}prune: {prune}\n")
    result = run(recipe, out=tmp_path / "out", device="cpu")
    assert result.report["final"]["nonzero_params"] < result.report["baseline"]["params"]
    assert len(traced) == times and len(set(traced)) == times, "each was of another model"
    assert len(scored) == (times if "structure" in prune else 0), "the units of each model were scored once"


@pytest.mark.parametrize(
    ("prune", "times"),
    [
        ("{kind: structure, ratio: 0.2}", 2),  # the whole and the narrowed model
        ("{kind: weights, sparsity: 0.5}", 2),  # in all, and by parameter
    ],
)
def test_macs_are_counted_once_for_each_structure(
    counted_macs: list[None], tmp_path: Path, prune: str, times: int
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{HEAD}{DATA}{TRAINED}prune: {prune}\n")
    result = run(recipe, out=tmp_path / "out", device="cpu")
    assert result.report["final"]["nonzero_macs"] < result.report["baseline"]["macs"]
    assert len(counted_macs) == times


def test_a_dry_run_and_an_inspection_trace_the_model_once(traced: list[int], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{HEAD}{DATA}{TRAINED}prune: {{kind: structure, ratio: 0.2}}\n")
    assert dry_run(load_recipe(recipe), "cpu").steps
    assert len(traced) == 1
    assert inspect_model("builtin:cifar_resnet20").groups
    assert len(traced) == 2


def test_what_is_known_holds_until_the_structure_or_the_inputs_change() -> None:
    known, model, image = Known(), nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), torch.randn(1, 3, 8, 8)
    graph = known.graph(model, image)
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert known.graph(model, image) is graph
    wide = known.costs(model, image, None)["macs"]
    assert known.costs(model, torch.randn(1, 3, 16, 16), None)["macs"] > wide
    model[0], model[1] = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 4, 3)
    assert known.graph(model, image).widths() != graph.widths()
    assert known.costs(model, image, None)["macs"] < wide
