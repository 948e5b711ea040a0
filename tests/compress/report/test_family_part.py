from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_families import member, small_family, timed_at

from compress.core.errors import InputError
from compress.report import write_report
from compress.report.family import family_part
from compress.report.results import read_report
from compress.sorted.family import Family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("run")
    small_family(folder, members=3)
    return Family.load(folder)


def test_members_and_the_runs_other_networks_are_drawn_by_cost(family: Family, long_run: Path) -> None:
    members = (
        member(14_000_000_000, 80.0, full=True, latency_ms=timed_at(50.0), onnx_bytes=3_000_000),
        member(7_000_000_000, 72.0, latency_ms=timed_at(30.0)),
        member(6_000_000_000, 60.0),
        member(8_000_000_000, 64.0),
    )
    report = json.loads((long_run / "report.json").read_text())
    report["stages"].insert(2, {"name": "sort", "seconds": 1, "metrics": {"top1": 80.0, "macs": 14_000_000_000}})
    (long_run / "report.json").write_text(json.dumps(report))
    part = family_part(replace(family, members=members), read_report(long_run))
    assert part.facts[0] == ("Members", "4, of them 3 on the front and 2 timed")
    assert "full network 80.0, mean of the members 69.0, 86.2% of the full network's" in part.facts[1][1]
    assert part.facts[1][0] == part.columns[0] == "Top-1 accuracy"
    assert [row[0] for row in part.rows] == ["2", "1", "0 (full)"]
    assert part.rows[2][1] == ["80.0", "50.0 ms", "14.0 G MACs", "1.40 G params", "3.00 MB"]
    assert part.rows[0][1][1] == "–"
    (_, by_macs), (_, by_latency), _ = part.charts
    assert ">Top-1 accuracy by MACs<" in by_macs and "top1" not in by_macs
    assert by_macs.count("<circle") == 4 + 3 + 2  # members, the front, and the dense and the pruned network
    assert len(re.findall('class="beside"', by_macs)) == 2
    assert by_latency.count("<circle") == 2 + 2 + 1  # of the others, the baseline alone was timed


def test_on_a_busy_machine_members_and_other_networks_are_drawn_by_one_clock(
    family: Family, long_run: Path, change: Callable[..., None]
) -> None:
    members = (
        member(2_000_000, 80.0, full=True, latency_ms=timed_at(90.0, cpu_p50=40.0, contended=True)),
        member(1_000_000, 72.0, latency_ms=timed_at(70.0, cpu_p50=30.0, contended=True)),
    )
    change(long_run, baseline__latency_ms=timed_at(95.0, cpu_p50=50.0, contended=True))
    part = family_part(replace(family, members=members), read_report(long_run))
    assert part.rows[0][1][1] == "30.0 ms of CPU time"
    ticks = [float(text) for text in re.findall(r">(\d+)</text>", part.charts[1][1])]
    assert "72.0, 30.0 ms of CPU time" in part.charts[1][1] and max(ticks) < 90


def test_the_page_has_the_family_of_the_run(family: Family, long_run: Path, change: Callable[..., None]) -> None:
    shutil.copytree(family.folder, long_run / "family")
    page = write_report(long_run).read_text()
    assert '<section id="family">' in page and '<a href="#family">' in page
    (long_run / "family" / "norms.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="the weights are not those"):
        write_report(long_run)
