"""Measured values in one file of JSON lines that several processes read and write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress.core.errors import InputError, NotWritten, reason_of

POLL_SECONDS = 0.01  # how often a lock that another process holds is asked for again


class JsonCache:
    """JSON values by key; what one process puts, the others get.

    Every value that is put is a line of the file, {key: value}; of several lines of a key the last counts. A line that
    a killed process left unfinished counts as absent. Values of an older version, which kept them all as one JSON
    object in a file `.json` beside `path` (`.jsonl`), are found too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._inode: int | None = None
        self._read = 0
        """So many bytes of the file are in `_values`: always whole lines."""

    def get(self, key: str) -> Any:
        """Return the value of `key`, or None; raises InputError for a damaged file."""
        self._refresh()
        return self._values[key] if key in self._values else self._older.get(key)

    def put(self, key: str, value: Any) -> None:
        """Enter `value` under `key`; raises NotWritten where the system refuses."""
        line = json.dumps({key: value}, allow_nan=False) + "\n"
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            try:
                drop_torn_line(self.path)
                with self.path.open("ab") as file:
                    file.write(line.encode())
            except OSError as error:
                raise NotWritten(f"cannot write {self.path}: {reason_of(error)}") from error

    def _refresh(self) -> None:
        """Read the whole lines that were written since the last time."""
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._inode or state.st_size < self._read:
                    self._values, self._inode, self._read = {}, state.st_ino, 0
                file.seek(self._read)
                lines, newline, _ = file.read().rpartition(b"\n")
            for line in lines.splitlines():
                self._values.update(_object(line))
            self._read += len(lines + newline)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise _damaged(self.path, error) from error

    @cached_property
    def _older(self) -> dict[str, Any]:
        path = self.path.with_suffix(".json")
        try:
            return _object(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error


def _object(text: bytes) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__} where an object should be")
    return found


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be read as JSON ({error}); delete it to measure anew")


def drop_torn_line(path: Path) -> None:
    """Cut off the end of a file up to its last line break, if there is a file."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


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
