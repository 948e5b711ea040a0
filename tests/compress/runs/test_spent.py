"""How long a stage took is told over all sessions of its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compress.runs.spent import seconds_before

Events = list[tuple[int, str, dict[str, Any]]]
FIRST: Events = [(0, "start", {}), (1, "stage", {"stage": "dense", "number": 1})]
ENDED: Events = [(40, "stage_end", {"stage": "dense", "seconds": 39.5})]
SECOND: Events = [(500, "resume", {}), (502, "stage", {"stage": "dense", "number": 1}), (532, "epoch", {})]


def logged(folder: Path, events: Events) -> Path:
    """Return a log of (second, kind, what else) whose last line was cut short."""
    lines = [
        json.dumps({"time": f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}+0000", "event": kind, **more})
        for second, kind, more in events
    ]
    file = folder / "log.jsonl"
    file.write_text("\n".join([*lines, '{"time": "2026-01-01T']))
    return file


@pytest.mark.parametrize(
    ("events", "goes_on", "seconds"),
    [
        (FIRST, False, 0.0),
        ([*FIRST, (21, "interrupted", {})], False, 20.0),
        ([*FIRST, (21, "epoch", {}), *SECOND], False, 20.0 + 30.0),
        ([*FIRST, *ENDED], True, 39.5),  # a finished search gets more trials
        ([*FIRST, *ENDED], False, 0.0),  # its folder was deleted
        ([*FIRST, *ENDED, *SECOND], False, 30.0),
        ([*FIRST, *ENDED, SECOND[0], (502, "stage", {**FIRST[1][2], "goes_on": True}), SECOND[2]], False, 39.5 + 30.0),
    ],
)
def test_sessions_add_up_unless_what_they_did_is_done_anew(
    events: Events, goes_on: bool, seconds: float, tmp_path: Path
) -> None:
    assert seconds_before(logged(tmp_path, events), 1, "dense", goes_on) == seconds


def test_a_stage_behind_one_that_ran_again_begins_anew(tmp_path: Path) -> None:
    second: Events = [(41, "stage", {"stage": "prune", "number": 2}), (61, "epoch", {})]
    file = logged(tmp_path, [*FIRST, *ENDED, *second])
    assert seconds_before(file, 2, "prune") == 20.0
    assert seconds_before(logged(tmp_path, [*FIRST, *ENDED, *second, *SECOND]), 2, "prune") == 0.0
    assert seconds_before(tmp_path / "none.jsonl", 2, "prune") == 0.0
