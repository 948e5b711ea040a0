"""Processes that tests start and kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

# A new interpreter would take ten seconds to import everything, and a fork of the tests' own process inherits what
# tests have done to it before: autograd refuses to run in a fork once a tensor of fake storage has been differentiated.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([
    "preloaded", "compress.cli", "compress.runs.pipeline", "onnxruntime", "optuna.importance",
    "search.job", "sklearn.linear_model", "timm", "torch._dynamo",
])  # fmt: skip
PATH = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
"""Where the process that they are forked from finds `preloaded`."""


@contextmanager
def one_server() -> Iterator[None]:
    """Let searches fork their workers from this server, too: a process has one, and what it imports is said once."""
    start = forkserver.ForkServer.ensure_running

    def started(server: forkserver.ForkServer) -> None:
        with patch.dict(os.environ, PYTHONPATH=PATH):
            start(server)

    with patch.object(forkserver.ForkServer, "ensure_running", started):
        with patch.object(forkserver, "set_forkserver_preload"):
            yield


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


def told_by(script: str, folders: Iterable[Path], place: Path | None = None) -> tuple[dict[str, dict[str, Any]], str]:
    """Run a script on folders, in a process of its own that starts in `place`; return what it tells, and its errors.

    It tells JSON objects, one a line, each with a "name".
    """
    with tempfile.TemporaryDirectory() as written:
        out, errors = Path(written, "out"), Path(written, "errors")
        Child(_interpret, script, [str(folder) for folder in folders], str(place or Path.cwd()), out, errors).wait()
        told = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
        return {each["name"]: each for each in told}, errors.read_text()


def _interpret(script: str, arguments: list[str], place: str, out: Path, errors: Path) -> None:
    for number, path in ((1, out), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(place)
    sys.path.insert(0, place)
    sys.argv = ["-c", *arguments]
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()


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
