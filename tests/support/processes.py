"""Processes that tests start and kill."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
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
