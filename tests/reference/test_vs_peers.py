"""The search of benchmarks/vs_peers.py for a latency ratio, on staircases, and its table."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import InputError
from compress.graph.plan import Plan

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("vs_peers_benchmark", FOLDER / "vs_peers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "vs_peers_benchmark", module)
    spec.loader.exec_module(module)
    return module


class Steps:
    """An arm, and the watch that times it: a plan's width stands for its strength."""

    whole = False
    strengths = (0.1, 0.3, 0.5, 0.7, 0.9)

    def __init__(self, ratio: Callable[[float], float]) -> None:
        self.ratio, self.timings = ratio, 0

    def plan(self, strength: float) -> Plan:
        if strength > 0.8:
            raise InputError("too much")
        return Plan(params=(1000, round(1000 * strength)))

    def timed(self, plans: Sequence[Plan], config: Any) -> list[dict[str, Any]]:
        self.timings += len(plans)
        ratios = [self.ratio(plan.params[1] / 1000) for plan in plans]
        return [{"median": ratio, "ci95": [ratio, ratio], "clock": "cpu"} for ratio in ratios]


def test_it_finds_the_strength_of_a_ratio_and_comes_as_near_as_an_arm_can(benchmark: Any) -> None:
    smooth = Steps(lambda strength: 1 / (1 - strength))
    found = benchmark.searched(smooth, [1.5, 2.0, 3.0], smooth)
    assert [each.times for each in found] == [pytest.approx(goal, rel=0.03) for goal in (1.5, 2.0, 3.0)]
    assert smooth.timings < 20
    jump = Steps(lambda strength: 1.1 if strength < 0.45 else 1.7)
    (one,) = benchmark.searched(jump, [1.5], jump)
    assert one.times == 1.7 and one.strength >= 0.45


def test_rows_are_read_back_in_the_order_of_the_table(benchmark: Any, tmp_path: Path) -> None:
    folder = tmp_path / "resnet20" / "rows"
    folder.mkdir(parents=True)
    for number, name in enumerate(["depth", "compress latency"]):
        row = dict.fromkeys(benchmark.COLUMNS) | {"network": "resnet20", "arm": name, "asked": 2.0, "seed": 0}
        (folder / f"{number}.json").write_text(json.dumps(row))
    benchmark.written(benchmark.rows_of(tmp_path), tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        assert [row["arm"] for row in csv.DictReader(file)] == ["compress latency", "depth"]
