"""A training on several devices: one more process for each, which does the act of a run that this process does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from compress.core.errors import CompressError
from compress.core.progress import say
from compress.training.replicas import joined, leave

MEETING, READY, MESSAGE = "meeting", "ready", "message"
"""Files in the folder that the processes share: where they find one another, that one is there, and why one failed."""
TALK = ("gloo", "nccl", "process group", "connection")
"""Words in the errors of PyTorch's that say that another process does not answer."""
SOON, GRACE = 5.0, 60.0
"""Seconds until one that does not answer is known to have ended, and until this one should notice that another has."""


@contextlib.contextmanager
def replicated(run: Path, act: int, devices: Sequence[str]) -> Iterator[None]:
    """Train on all of `devices` inside the block, this process on the first one; all else there is done here alone.

    Args:
        run: the directory of the run, whose recipe and finished acts the others open.
        act: the number of the act that is done in the block.
        devices: such as "cuda:0" and "cuda:1"; with one, nothing happens.

    Raises CompressError where another process fails.
    """
    if len(devices) == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="compress-replicas-", ignore_cleanup_errors=True) as name:
        folder, over = Path(name), threading.Event()
        with contextlib.ExitStack() as group:
            group.enter_context(_threads_shared(devices))
            others = [_started(run, act, folder, number, devices) for number in range(1, len(devices))]
            group.callback(_end, others)
            group.callback(over.set)
            say(f"training on {', '.join(devices)}: each learns from a share of every batch")
            if devices[0] != "cpu":
                threading.Thread(target=_watch, args=(others, devices, folder, over), daemon=True).start()
            try:
                _await(others, devices, folder)
                group.enter_context(joined(0, len(devices), folder / MEETING, devices[0], over=group.close))
                yield
            except (RuntimeError, ValueError) as error:
                of_talk = any(word in str(error).lower() for word in TALK)
                failed = _failed(others, devices, folder, SOON) if of_talk and not over.is_set() else None
                if failed is None:
                    raise
                raise CompressError(failed) from error


def _end(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Go on alone."""
    for other in others:
        other.kill()
        other.wait()


@contextlib.contextmanager
def _threads_shared(devices: Sequence[str]) -> Iterator[None]:
    """Let processes that compute on the CPU, started in the block, use no more threads together than this one would."""
    before, name = torch.get_num_threads(), "OMP_NUM_THREADS"  # what settles threads by the model goes by this
    given = os.environ.get(name)
    if devices[0] == "cpu":
        torch.set_num_threads(max(1, before // len(devices)))
        os.environ[name] = str(torch.get_num_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.pop(name, None)
        if given is not None:
            os.environ[name] = given


def _started(run: Path, act: int, folder: Path, number: int, devices: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a process; it ends when this one does, however that ends, by the end of its standard input."""
    given = {"run": str(run), "act": act, "folder": str(folder), "number": number, "devices": list(devices)}
    with (folder / f"{number}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "compress.runs.replica", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )


def _await(others: Sequence[subprocess.Popen[bytes]], devices: Sequence[str], folder: Path) -> None:
    """Return once all others are there; CompressError where one is not to be."""
    while not all((folder / f"{number}.{READY}").exists() for number in range(1, len(devices))):
        failed = _failed(others, devices, folder, 0.1)
        if failed is not None:
            raise CompressError(failed)


def _failed(others: Sequence[subprocess.Popen[bytes]], devices: Sequence[str], folder: Path, wait: float) -> str | None:
    """Return what became of a process that has failed, within `wait` seconds; None where all go on."""
    until = time.monotonic() + wait
    while True:
        for number, other in enumerate(others, start=1):
            if other.poll():
                message = folder / f"{number}.{MESSAGE}"
                lines = (folder / f"{number}.log").read_text(encoding="utf-8", errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), f"exit code {other.returncode}")
                said = message.read_text(encoding="utf-8") if message.is_file() else last
                return f"the process that trains on {devices[number]} has ended: {said}"
        if time.monotonic() >= until:
            return None
        time.sleep(0.1)


def _watch(
    others: Sequence[subprocess.Popen[bytes]], devices: Sequence[str], folder: Path, over: threading.Event
) -> None:
    """Where another process has failed and this one waits for a GPU that waits for it, give up; at last, end."""
    while not over.wait(1.0):
        failed = _failed(others, devices, folder, 0.0)
        if failed is None:
            continue
        if over.wait(GRACE):
            return
        leave(sound=False)
        if not over.wait(GRACE):
            print(f"{failed}; go on with --resume", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)
        return
