"""The chart of all models."""

import json
from pathlib import Path

from compress.report.results import read_report
from compress.report.story_chart import _together, story_chart


def test_models_at_one_place_share_a_label_and_others_keep_theirs() -> None:
    marks = [(300.0, 60.0, "prune"), (301.0, 55.0, "finetune"), (700.0, 40.0, "dense"), (302.0, 61.0, "sort")]
    assert _together(marks) == [(302.0, 60.0, "prune, finetune, sort"), (700.0, 40.0, "dense")]


def test_the_axis_names_the_clock_that_the_dots_are_of(long_run: Path) -> None:
    report = json.loads((long_run / "report.json").read_text())
    for number, stage in enumerate(report["stages"][:3]):
        times = {**report["baseline"]["latency_ms"], "contended": True}
        stage["metrics"] |= {"top1": 80.0 + number, "latency_ms": times}

    def axis(threads: int) -> str:
        for times in (report["baseline"]["latency_ms"], report["final"]["latency_ms"]):
            times |= {"threads": threads, "contended": True}
        (long_run / "report.json").write_text(json.dumps(report))
        found = story_chart(read_report(long_run), None, [])
        assert found is not None
        return found.chart

    assert "latency, ms of CPU time<" in axis(threads=1)
    assert "latency, ms<" in axis(threads=2)  # CPU time is that of all threads, and the dots are of the clock
