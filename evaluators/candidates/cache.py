"""Measured values in one JSON file that several processes read and write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress.core.atomic import write_json
from compress.core.errors import InputError

POLL_SECONDS = 0.01  # how often a lock that another process holds is asked for again


class JsonCache:
    """JSON values by key; what one process puts, the others get. A killed process leaves the file whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._version: tuple[int, int] | None = None

    def get(self, key: str) -> Any:
        """Return the value of `key`, or None; raises InputError for a damaged file."""
        self._refresh()
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Enter `value` under `key`."""
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            self._refresh()
            write_json(self.path, {**self._values, key: value})

    def _refresh(self) -> None:
        try:
            state = self.path.stat()
            if (state.st_ino, state.st_mtime_ns) != self._version:
                self._values = json.loads(self.path.read_text(encoding="utf-8"))
                self._version = (state.st_ino, state.st_mtime_ns)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read as JSON ({error}); delete it to measure anew") from error


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path` for the block; yields False where `wait` is not and another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait, poll_interval=POLL_SECONDS)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()  # as does the end of the process, however it ends
