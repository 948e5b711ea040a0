import json
from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import InputError
from compress.report import summary_line, summary_of
from compress.report.schema import Report, parse
from compress.report.tables import model_rows, tiles

CONTRACT = (
    "swin_base  MACs 15.5→7.4 G (\N{MINUS SIGN}52 %)  params 88→42 M  top-1 83.5→83.3  "
    "latency 58→37 ms (1.55\N{MULTIPLICATION SIGN}, efficiency 0.74)  runs/dimap_swin"
)


def _report(**final: Any) -> dict[str, Any]:
    baseline = {"macs": 15.467e9, "params": 87768224, "top1": 83.47, "latency_ms": {"p50": 58.1}}
    small = {"macs": 7.402e9, "params": 41933184, "top1": 83.26, "latency_ms": {"p50": 37.2}}
    ratio = {"median": 1.551, "ci95": [1.5, 1.6], "blocks": 30}
    report = {"schema": 1, "name": "dimap_swin", "baseline": baseline, "final": {**small, **final}}
    return {**report, "latency_ratio": ratio, "efficiency": 0.7424}


def test_summary_is_the_line_of_the_contract() -> None:
    assert summary_line(_report(), model="swin_base") == CONTRACT


def test_on_a_busy_machine_milliseconds_and_ratio_are_of_one_clock() -> None:
    report = _report()
    report["latency_ratio"]["median"] = 1.02
    for metrics, wall, cpu in ((report["baseline"], 0.144, 0.131), (report["final"], 0.248, 0.128)):
        metrics["latency_ms"] = {"p50": wall, "cpu_p50": cpu, "threads": 1, "contended": wall > 0.2}
    assert "  latency 0.131→0.128 ms of CPU time (1.02\N{MULTIPLICATION SIGN}," in summary_line(report)
    for metrics in (report["baseline"], report["final"]):  # whose CPU time is that of waiting for the GPU
        metrics["latency_ms"]["provider"] = "CUDAExecutionProvider"
    assert "  latency 0.144→0.248 ms (" in summary_line(report)
    for metrics in (report["baseline"], report["final"]):
        metrics["latency_ms"]["provider"] = "CPUExecutionProvider"
    report["final"]["latency_ms"]["contended"] = False
    assert "  latency 0.144→0.248 ms (" in summary_line(report)


def test_on_a_busy_machine_one_model_is_told_by_its_cpu_time_too() -> None:
    report = _report() | {"latency_ratio": None, "efficiency": None}
    times = {"p50": 0.144, "cpu_p50": 0.131, "threads": 1, "provider": "CPUExecutionProvider", "contended": True}
    report["final"]["latency_ms"] = times
    report["baseline"] = report["final"]
    assert "  latency 0.131 ms of CPU time  " in summary_line(report)
    (tile,) = [tile for tile in tiles(parse(Report, report, "")) if "median" in tile.label]
    assert (tile.value, tile.label) == ("0.131 ms", "median CPU time")


def test_small_figures_without_a_unit_are_not_rounded_to_nothing() -> None:
    report = _report() | {"task": {"name": "regression", "main_metric": "mae", "direction": "minimize"}}
    report["baseline"]["mae"], report["final"]["mae"] = 0.000_512, 0.000_234
    assert "  MAE 0.0005→0.0002  " in summary_line(report)
    rows = {row.key: row for row in model_rows(parse(Report, report, "report.json"))}
    mae = rows["mae"]
    assert (mae.baseline.text, mae.final.text, mae.difference) == ("0.00051", "0.00023", "\N{MINUS SIGN}0.00028")
    report["baseline"]["mae"], report["final"]["mae"] = 0.0695, 0.0691
    assert "  MAE 0.070→0.069  " in summary_line(report)


def test_summary_leaves_out_what_was_not_measured() -> None:
    report = _report(top1=None, latency_ms=None) | {"latency_ratio": None, "efficiency": None}
    line = summary_line(report, run_dir="out/a")
    assert line == "dimap_swin  MACs 15.5→7.4 G (\N{MINUS SIGN}52 %)  params 88→42 M  out/a"


def test_summary_of_a_run_without_baseline_shows_the_final_model_alone() -> None:
    line = summary_line({"schema": 1, "name": "n", "baseline": None, "final": _report()["final"]})
    assert line == "n  MACs 7.40 G  params 41.9 M  top-1 83.3  latency 37.2 ms  runs/n"


def test_summary_of_one_model_has_no_arrows_and_no_ratio() -> None:
    report = _report() | {"latency_ratio": None, "efficiency": None}
    line = summary_line(report | {"baseline": report["final"]})
    assert line == "dimap_swin  MACs 7.40 G  params 41.9 M  top-1 83.3  latency 37.2 ms  runs/dimap_swin"


def test_summary_shows_nonzero_counts_under_masks() -> None:
    line = summary_line(_report(macs=15.467e9, params=87768224, nonzero_macs=7.402e9, nonzero_params=41933184))
    assert "nonzero MACs 15.5→7.4 G (\N{MINUS SIGN}52 %)  nonzero params 88→42 M" in line


def test_summary_passes_over_values_that_are_not_finite() -> None:
    assert "top-1" not in summary_line(_report(top1=float("nan")))


def test_summary_of_a_directory_names_the_model_and_the_directory(long_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(long_run.parent)
    line = summary_of(Path("dimap_swin"))
    assert line.startswith("swin_base_patch4_window7_224  MACs ") and line.endswith("  dimap_swin")


def test_summary_refuses_another_schema() -> None:
    with pytest.raises(InputError, match="schema"):
        summary_line(json.loads(json.dumps(_report() | {"schema": 2})))


def test_the_main_metric_of_another_task_takes_its_place_even_where_that_task_is_not_installed() -> None:
    report = _report(top1=None, rmse=0.0312) | {
        "task": {"name": "depth", "main_metric": "rmse", "direction": "minimize"}
    }
    report["baseline"] |= {"top1": None, "rmse": 0.5}
    assert "  params 88→42 M  rmse 0.50→0.03  latency" in summary_line(report)
