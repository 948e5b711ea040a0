"""Trials in this process, or in several processes of this machine that share the study."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from compress.core.errors import CompressError
from compress.core.progress import set_quiet, track
from compress.core.registry import module_of
from search.executors.executor import ExecutorBase, executors
from spaces.registry import spaces

if TYPE_CHECKING:
    from search.job import SearchJob
    from search.runner import Runner

POLL_SECONDS = 0.5


@executors.register("local")
class LocalExecutor(ExecutorBase):
    """Processes on this machine."""

    kind: Literal["local"] = "local"
    workers: int = Field(1, ge=1, le=256, description="processes that evaluate at the same time; 1 is this one")
    storage: str | None = Field(
        None, description="SQLAlchemy URL of a database shared with other machines; null: study.journal in the run"
    )

    def run(self, job: SearchJob, runner: Runner, deadline: float | None) -> None:
        """Work in this process, or in several that share the study; these take the given devices in turn."""
        turns = _turns(runner, deadline) if self.workers == 1 else _share(job, runner, self.workers, deadline)
        for _ in track(turns, "searching", total=max(0, runner.trials - runner.planned())):
            pass


def _turns(runner: Runner, deadline: float | None) -> Iterator[None]:
    """Evaluate one trial per step; known and refused architectures take no step."""
    while deadline is None or time.monotonic() < deadline:
        asked = runner.ask()
        if asked is None:
            return
        runner.run(asked)
        yield


def _share(job: SearchJob, runner: Runner, count: int, deadline: float | None) -> Iterator[None]:
    """Let processes work; one step per trial of theirs. The first that fails ends the search."""
    context = _context(job)
    errors = context.SimpleQueue()
    devices = itertools.cycle([job.device, *job.others])
    jobs = [replace(job, device=device) for device in itertools.islice(devices, count)]
    workers: list[BaseProcess] = []
    try:
        for each in jobs:
            started = context.Process(target=_work, args=(each, deadline, dict(os.environ), errors))
            started.start()
            workers.append(started)
        seen = runner.planned()
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.join(timeout=POLL_SECONDS / count)
                _check(worker, errors)
            found = runner.planned()
            yield from [None] * (found - seen)
            seen = max(seen, found)
        for worker in workers:
            _check(worker, errors)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _context(job: SearchJob) -> ForkServerContext | SpawnContext:
    """Return what starts processes: where the system can, from a server that has imported what takes seconds, once.

    The server is ready then. What it is asked for before, it does though the asking process is gone: a worker would
    find no queue for its errors, and end in a traceback.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preloaded(job))
    ready = context.Process(target=_nothing)
    ready.start()  # waits for the server's imports; where this process is ended meanwhile, nothing needs it afterwards
    ready.join()
    return context


def _nothing() -> None:
    pass


def preloaded(job: SearchJob) -> list[str]:
    """Return the modules that workers need: those of any search, all spaces among them, and those of the evaluator.

    None of them asks for a device; modules of third parties, which may, are left out.
    """
    homes = {module_of(spaces.get(name)) for name in spaces}
    ours = sorted(home for home in homes if home.startswith("spaces."))
    return ["search.job", *ours, *job.config.evaluator.preloaded]


def _work(
    job: SearchJob, deadline: float | None, environment: Mapping[str, str], errors: SimpleQueue[CompressError]
) -> None:
    os.environ.clear()
    os.environ.update(environment)  # the server's may be older
    set_quiet(True)  # how far the search is, is told by the process that started it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if job.device.startswith("cuda"):
            import torch

            torch.cuda.set_device(job.device)
        for _ in _turns(job.open(), deadline):
            pass
    except CompressError as error:
        errors.put(error)
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """End this process where the one that started it is killed: a search that was killed does not go on in secret."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _check(worker: BaseProcess, errors: SimpleQueue[CompressError]) -> None:
    if worker.exitcode in (None, 0):
        return
    if not errors.empty():
        raise errors.get()
    raise CompressError(f"a search worker ended with exit code {worker.exitcode}; its messages are above")
