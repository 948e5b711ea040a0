"""How long a stage was at work in earlier sessions of its run, as log.jsonl tells."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any


def seconds_before(log_file: Path, number: int, name: str, goes_on: bool = False) -> float:
    """Return the seconds that earlier sessions spent on what the stage `name`, the `number`-th, is about to go on with.

    A session that was killed counts up to its last event. Work that is done anew counts no more: of a stage that had
    finished, unless it `goes_on` (a search with more trials), and of one that follows an earlier stage which ran again.
    """
    spent, began, last, finished = 0.0, None, None, False
    for event in _events(log_file):
        moment, kind = event["moment"], event.get("event")
        if kind in ("start", "resume") and began is not None and last is not None:
            spent, began = spent + (last - began).total_seconds(), None
        elif kind == "stage" and event.get("number", 0) < number:
            spent, finished = 0.0, False
        elif kind == "stage" and (event.get("number"), event.get("stage")) == (number, name):
            spent = 0.0 if finished and not event.get("goes_on") else spent
            began, finished = moment, False
        elif kind == "stage_end" and event.get("stage") == name and began is not None:
            spent, began, finished = float(event.get("seconds", 0.0)), None, True
        last = moment
    if began is not None and last is not None:
        spent += (last - began).total_seconds()
    return 0.0 if finished and not goes_on else spent


def _events(log_file: Path) -> list[dict[str, Any]]:
    """Return the events with the `moment` of each; without lines that were cut short or are of other programs."""
    found = []
    with suppress(OSError, UnicodeDecodeError):
        for line in log_file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError, KeyError):
                event = json.loads(line)
                found.append({**event, "moment": datetime.strptime(event["time"], "%Y-%m-%dT%H:%M:%S%z")})
    return found
