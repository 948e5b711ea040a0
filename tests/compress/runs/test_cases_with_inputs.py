"""The cases with inputs of their own, by recipes alone: pruned to half of their MACs, exported, timed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.bundle import Bundle
from compress.cli import app

RECIPE = """
version: 1
name: case
model: {source: python, name: "NAME:make", inputs: INPUTS}
data: {name: none}
prune: {kind: structure, criterion: magnitude, budget: {macs: 0.6}, align: 1}
export: {exporter: EXPORTER}
latency: {runs: 3, seconds: 0, max_seconds: 0.5}
"""
CASES = Path(__file__).parents[2] / "cases"


@pytest.mark.parametrize(
    ("name", "exporter", "inputs"),
    [
        ("ddpm_unet", "torchscript", "{x: {shape: [3, 16, 16]}, t: {shape: [], dtype: int64, high: 1000}}"),
        ("multitask", "torchscript", "[{shape: [3, 64, 64], dynamic: {2: height, 3: width}}]"),
        ("catnet", "dynamo", "[{shape: [3, 64, 64]}]"),
        ("ecapa", "torchscript", "{x: {shape: [80, 50], dynamic: {2: frames}}}"),
    ],
)
def test_a_case_goes_the_whole_way(
    name: str, exporter: str, inputs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(CASES)
    (tmp_path / "case.yaml").write_text(
        RECIPE.replace("NAME", name).replace("INPUTS", inputs).replace("EXPORTER", exporter)
    )
    found = CliRunner().invoke(app, ["run", "case.yaml", "--out", "run"])
    assert found.exit_code == 0, found.output
    metrics = Bundle.load(tmp_path / "run").metrics
    assert metrics["onnx_parity_max_rel"] < 1e-4 and (tmp_path / "run" / "model.onnx").is_file()
    shown = CliRunner().invoke(app, ["inspect", "run"])
    assert shown.exit_code == 0 and "input" in shown.output
