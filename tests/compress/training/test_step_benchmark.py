"""The comparison with a plain training loop runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def test_the_benchmark_prints_both_rates_and_their_ratio(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).parents[3] / "benchmarks" / "train_step.py"
    spec = importlib.util.spec_from_file_location("train_step_benchmark", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    options = ["--images", "16", "--batch", "8", "--rounds", "2", "--precision", "bf16", "--channels-last"]
    monkeypatch.setattr("sys.argv", ["train_step.py", *options])
    benchmark.main()
    printed = capsys.readouterr().out
    assert "compress" in printed and "plain" in printed
    ratio = float(printed.rpartition("compress / plain: ")[2].split()[0])
    assert 0.2 < ratio < 5
