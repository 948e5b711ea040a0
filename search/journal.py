"""Optuna's journal file, with a lock that no killed process can leave behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from compress.core.errors import InputError
from evaluators.candidates.cache import POLL_SECONDS, drop_torn_line


def journal(path: Path) -> JournalStorage:
    """Return the storage in `path`, which is created where it is not there.

    Raises:
        InputError: the file is something else, or damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    lock = JournalLock(path)
    lock.acquire()  # cuts off a line that a killed writer left unfinished
    last = path.read_bytes().rstrip(b"\n").rpartition(b"\n")[2]
    lock.release()
    try:
        json.loads(last or b"{}")  # Optuna finds out once something stands behind it
        return JournalStorage(Backend(path, lock))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path}: not a journal of Optuna's, or damaged: {error}") from error


class Backend(JournalFileBackend):
    """Optuna's file, of which the system writes to disk at once only what changes the state of a trial.

    Optuna waits for the disk at every choice of a trial, some milliseconds each. What is written outlives a kill
    anyway; where the power fails, the choices of trials under way may be lost with them.
    """

    def __init__(self, path: Path, lock: JournalLock) -> None:
        super().__init__(str(path), lock_obj=lock)
        self.path, self.lock = path, lock

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append a line of JSON for each."""
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        self.lock.acquire()
        try:
            with self.path.open("ab") as file:
                file.write(lines.encode())
                if any("state" in log for log in logs):
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            self.lock.release()


class JournalLock(JournalFileOpenLock):
    """The kernel's lock on a file beside the journal: it ends with its holder, however that ends.

    Optuna's own locks are files: after a kill everybody waits until the file counts as forgotten, for ever where the
    journal's directory was moved meanwhile.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.writing"))

    def acquire(self) -> bool:
        """Wait for the lock; the last line is whole then, so that the next one does not continue another's."""
        self._lock.acquire(poll_interval=POLL_SECONDS)
        try:
            drop_torn_line(self.path)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Let go."""
        self._lock.release()
