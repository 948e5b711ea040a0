"""Processes that tests start and kill."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A new interpreter would take seconds to import everything, and a fork of the tests' own process inherits what earlier
# tests have done to it: autograd refuses to run in a fork once a tensor of fake storage has been differentiated.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["compress.cli", "compress.runs.pipeline", "compress.runs.stages.search", "search.job"])


class Child:
    """A process that calls `function(*arguments)`; both have to be picklable."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self.process = _context.Process(target=function, args=arguments)
        self.process.start()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()

    def wait(self) -> int | None:
        """Return 0, the status that it ended with (1: an exception), or minus the signal that ended it."""
        self.process.join()
        return self.process.exitcode


def kill_after(process: Child, folder: Path, checkpoints: str, writes: int, generator: random.Random) -> None:
    """Kill a process some moments after it has written `checkpoints`, files below `folder` by a glob, `writes` times.

    Raises AssertionError where it has ended by itself.
    """

    def stamp() -> int:
        return max((path.stat().st_mtime_ns for path in folder.glob(checkpoints)), default=0)

    before, seen, deadline = stamp(), 0, time.monotonic() + 120
    while seen < writes and time.monotonic() < deadline and process.process.is_alive():
        now = stamp()
        seen, before = seen + (now != before), now
        time.sleep(0.002)
    time.sleep(generator.uniform(0, 0.05))
    process.kill()
    assert process.wait() == -9, "it had ended by itself"
