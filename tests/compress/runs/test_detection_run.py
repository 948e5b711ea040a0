"""A detector from weights to a pruned, fine-tuned, measured file; and one that learns nothing is told so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from compress.cli import main

SUPPORT = Path(__file__).parents[2] / "support"

RECIPE = """
version: 1
name: detector
task: {name: detection}
model: {source: python, name: "tiny_detector:make"}
data: {name: digits_detection, image_size: 32, samples: 32, test_samples: 8, batch_size: 8}
prune: {kind: structure, criterion: taylor, budget: {macs: 0.6}}
finetune: {epochs: 1, lr: 1.0e-3}
export: {exporter: torchscript}
latency: {runs: 3, seconds: 0, max_seconds: 2}
"""

SILENT = """
from torch import nn
import tiny_detector


class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_detector.make(11)

    def forward(self, images, targets=None):
        return self.inner.eval()(images)


make = Silent
"""


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["compress", *arguments])
        main()
    return int(ended.value.code or 0)


def test_a_detector_is_pruned_fine_tuned_exported_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(SUPPORT)
    Path("mine.yaml").write_text(RECIPE)
    assert run("run", "--recipe", "mine.yaml", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    baseline, final = report["baseline"], report["final"]
    assert 0.55 < final["macs"] / baseline["macs"] < 0.65 and final["loss"] is None
    assert final["onnx_parity_max_rel"] < 1e-4 and final["latency_ms"]["p50"] > 0
    assert run("eval", "runs/detector/model.onnx", "--recipe", "mine.yaml", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["map"] == pytest.approx(final["map"], abs=0.1) and figures["images"] == 8
    notes = json.loads(next(Path("runs/detector/stages").glob("*prune/details.json")).read_text())["notes"]
    assert any("compensation is left out" in note for note in notes)


def test_a_model_without_losses_is_refused_before_anything_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(SUPPORT)
    Path("silent_detector.py").write_text(SILENT)
    Path("mine.yaml").write_text(RECIPE.replace("tiny_detector:make", "silent_detector:make"))
    assert run("run", "--recipe", "mine.yaml") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "in training it returns a list; task detection needs a dictionary of losses" in told
    assert not list(Path("runs").glob("*/stages/*prune*"))
