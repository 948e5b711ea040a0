"""Optuna's journal file, with a lock that no killed process can leave behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from compress.errors import InputError


def journal(path: Path) -> JournalStorage:
    """Return the storage in `path`, which is created where it is not there.

    Raises:
        InputError: the file is something else, or damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    lock = JournalLock(path)
    lock.acquire()  # cuts off a line that a killed writer left unfinished
    lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path}: not a journal of Optuna's, or damaged: {error}") from error


class JournalLock(JournalFileOpenLock):
    """The kernel's lock on the journal itself: it ends with its holder, however that ends.

    Optuna's own locks are files: after a kill everybody waits until the file counts as forgotten, for ever where the
    journal's directory was moved meanwhile.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._held: int | None = None

    def acquire(self) -> bool:
        """Wait for the lock; the last line is whole then, so that the next one does not continue another's."""
        held = os.open(self.path, os.O_RDWR)
        fcntl.flock(held, fcntl.LOCK_EX)
        _drop_torn_line(held)
        self._held = held
        return True

    def release(self) -> None:
        """Let go."""
        if self._held is not None:
            held, self._held = self._held, None
            os.close(held)


def _drop_torn_line(file: int) -> None:
    """Cut off the end of a file up to its last line break."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.ftruncate(file, os.pread(file, size, 0).rfind(b"\n") + 1)
