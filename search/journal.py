"""Optuna's journal file, with a lock that no killed process can leave behind."""

from __future__ import annotations

from pathlib import Path

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
    lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{path}: not a journal of Optuna's, or damaged: {error}") from error


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
