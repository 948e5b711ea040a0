"""Clocks, and whether other work on the machine disturbed them; sent to targets, see `evaluators.latency.agent`."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Request = dict[str, Any]
    Clock = Callable[[], int]

MOST_WAITED, MOST_SPREAD = 0.1, 1.5
"""On an idle machine up to 0.03 and 1.3 were seen, with a busy process for each of two cores 0.4 and more waiting."""
TICKS_SECONDS = 0.2


def cpu_clock(threads: int) -> Clock | None:
    """Return a nanosecond clock of CPU time, of this thread or (with several) all; None where it is too coarse."""
    if not hasattr(time, "thread_time_ns"):
        return None
    clock, info = (time.thread_time_ns, "thread_time") if threads == 1 else (time.process_time_ns, "process_time")
    return clock if time.get_clock_info(info).resolution <= 1e-5 else None  # type: ignore[arg-type]


def time_runs(
    session: Any, feed: dict[str, Any], clock: Clock | None, runs: int, seconds: float, max_seconds: float
) -> tuple[Any, Any]:
    """Return wall and CPU times (arrays, ms): `runs` or `seconds`, whichever is later, up to `max_seconds`."""
    import numpy as np

    clock = clock or (lambda: 0)
    wall, cpu = [], []
    started = time.perf_counter()
    while True:
        before_cpu, before_wall = clock(), time.perf_counter_ns()  # in this order: reading CPU time takes a microsecond
        session.run(None, feed)
        wall.append(time.perf_counter_ns() - before_wall)
        cpu.append(clock() - before_cpu)
        elapsed = time.perf_counter() - started
        if (len(wall) >= runs and elapsed >= seconds) or elapsed >= max_seconds:
            return np.array(wall) / 1e6, np.array(cpu) / 1e6


def warm_up(session: Any, feed: dict[str, Any], runs: int, seconds: float) -> float:
    """Run at least `runs` times and `seconds`; return the median wall time of the later half, in ms."""
    import numpy as np

    wall, _ = time_runs(session, feed, None, runs, seconds, math.inf)
    return float(np.median(wall[len(wall) // 2 :]))


def lost_seconds() -> dict[str, float]:
    """Return what this process was kept from so far, of what the system tells.

    `queued`: how long its threads were ready to run and did not, summed up; `stolen`: what the host of a virtual
    machine took from the processors that this process may use.
    """
    found = {}
    with contextlib.suppress(OSError, ValueError, IndexError):  # no Linux, or a kernel without these counts
        ran = [[int(word) for word in each.read_text().split()] for each in Path("/proc/self/task").glob("*/schedstat")]
        if sum(each[0] for each in ran):
            found["queued"] = sum(each[1] for each in ran) / 1e9
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        found["stolen"] = sum(int(row[8]) for row in rows if row and row[0] in own) / os.sysconf("SC_CLK_TCK")
    return found


class Watch:
    """Adds up, over the times that it is entered, what this process was kept from.

    `lost` holds the seconds of `lost_seconds`, and as `off` those in which this thread was on no processor.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.lost = {"off": 0.0, "queued": 0.0, "stolen": 0.0}

    def __enter__(self) -> None:
        self.before = lost_seconds()
        self.began, self.ran = time.perf_counter(), thread_seconds()

    def __exit__(self, *_: object) -> None:
        took, ran = time.perf_counter() - self.began, thread_seconds() - self.ran
        self.seconds += took
        now = lost_seconds()
        changes = {name: now[name] - self.before[name] for name in now if name in self.before}
        if ran:
            changes["off"] = max(0.0, took - ran)
        self.lost = {name: self.lost[name] + changes[name] for name in self.lost if name in changes}

    def share(self, name: str) -> float | None:
        """Return lost seconds per second; None where the system does not tell or it was too short for its ticks."""
        known = name in self.lost and self.seconds >= (TICKS_SECONDS if name == "stolen" else 1e-6)
        return self.lost[name] / self.seconds if known else None


def thread_seconds() -> float:
    """Return the CPU time of the calling thread; 0 where there is no such clock."""
    return time.thread_time() if hasattr(time, "thread_time") else 0.0


def unrest(walls: Sequence[Any], watch: Watch, request: Request) -> dict[str, Any]:
    """Return what disturbed the wall times of some models: shares of the time, and whether it counts.

    `waited` is the time that ready threads, or the only one, stood still; `stolen` what the host took. The times do not
    show it by themselves: with two busy processes for each core, most runs of a small model fall between two
    interruptions, and those often fall between two runs.
    """
    import numpy as np

    off = watch.share("off") if one_thread(request) else None
    known = [share for share in (off, watch.share("queued")) if share is not None]
    waited, stolen = max(known) if known else None, watch.share("stolen")
    spread = max(float(np.percentile(wall, 90) / np.median(wall)) for wall in walls)
    return {"waited": waited, "stolen": stolen, "contended": is_contended(waited, stolen, spread)}


def is_contended(waited: float | None, stolen: float | None, spread: float) -> bool:
    """Return whether shares of time that were lost, or p90 / p50 of the wall times, are those of a busy machine."""
    return max(waited or 0.0, stolen or 0.0) > MOST_WAITED or spread > MOST_SPREAD


def one_thread(request: Request) -> bool:
    """Return whether all work is done by the calling thread, so that its CPU time is the model's."""
    return bool(request["threads"] == 1 and request["provider"].startswith("CPU"))
