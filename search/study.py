"""The study that remembers a search: opened, repaired after a kill, read back."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from compress.core.errors import InputError, reason_of
from evaluators.candidates.cache import locked
from search.journal import journal
from search.objective import Direction
from search.optuna_internals import queued_params

JOURNAL = "study.journal"
BUSY_SECONDS = 120
"""So long a process waits for an SQLite database that others write to."""
ASKING_SECONDS = 600
"""After so long a trial of another host that has no worker yet counts as one whose process was killed."""
BEAT_SECONDS = 30
SILENT_SECONDS = 300
"""After so long without a beat, a worker on another host counts as dead."""


@dataclass(frozen=True)
class Sharing:
    """How processes that work on one study keep out of each other's way.

    Attributes:
        lock: a file whose lock a process of this host holds while it asks for a trial; None: nobody else asks.
        hosts: whether processes of other hosts, which do not see the lock, may ask too.
    """

    lock: Path | None = None
    hosts: bool = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the right to ask."""
        if self.lock is None:
            yield
            return
        with locked(self.lock):
            yield


def sharing(storage: str | None, directory: Path) -> Sharing:
    """Return how the processes that use `storage` (see `open_study`) keep out of each other's way."""
    if storage is None:
        return Sharing(directory / f".{JOURNAL}.lock")
    digest = hashlib.sha256(storage.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"compress-{os.getuid()}"
    return Sharing(folder / f"{digest}.lock", hosts=not storage.startswith("sqlite"))


def open_study(
    name: str,
    storage: str | None,
    directory: Path,
    directions: Sequence[Direction],
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
) -> Study:
    """Open the study called `name`, or create it.

    Args:
        name: of the study within its storage.
        storage: an SQLAlchemy URL (PostgreSQL, MySQL, SQLite); None: Optuna's journal file in `directory`.
        directory: the run's.
        directions: "maximize" or "minimize" per value.
        sampler: the strategy; None for reading.
        pruner: stops unpromising trials.

    Raises:
        InputError: the storage cannot be opened, or holds a study of that name with other directions.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with sharing(storage, directory).turn():  # two processes that create a database's tables at once both fail
        opened = _journal(directory) if storage is None else _database(storage)
        study = optuna.create_study(
            study_name=name,
            storage=opened,
            directions=list(directions),
            sampler=sampler,
            pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    found = [direction.name.lower() for direction in study.directions]
    if found != list(directions):
        raise InputError(
            f"study {name!r} has the directions {found}; the recipe's objective asks for {list(directions)}"
        )
    return study


def _journal(directory: Path) -> BaseStorage:
    try:
        return journal(directory / JOURNAL)
    except OSError as error:
        raise InputError(f"{directory / JOURNAL}: cannot be opened: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{error}; delete it to search anew, or name another directory with --out") from error


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy import create_engine

    lite = url.startswith("sqlite")
    try:
        if not lite:
            return RDBStorage(url)
        options = {"timeout": BUSY_SECONDS}
        engine = create_engine(url, connect_args=options)
        with engine.connect() as connection:  # the file keeps it: writers do not lock readers out; twice as fast
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        engine.dispose()
        return RDBStorage(url, engine_kwargs={"connect_args": options})
    except Exception as error:  # SQLAlchemy and the drivers raise their own families
        raise InputError(f"search.executor.storage: cannot open {url.split('@')[-1]!r}: {reason_of(error)}") from error


def worker_name() -> str:
    """Return host, process id and the process' start, so that a later process can tell whether this one still lives."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def is_alive(worker: str) -> bool:
    """Return whether a worker may still be at work: True for one on another host, which cannot be asked."""
    host, pid, started = worker.rsplit(":", 2)
    return host != socket.gethostname() or _started(int(pid)) == started


def _started(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; "gone" where there is none or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "gone" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return "gone"
    return "running"


def revive(study: Study, hosts: bool = False) -> int:
    """Deal with trials whose worker was killed; return how many there were. The caller holds the turn to ask.

    A trial that had been measured completely is finished. One that was being evaluated is failed, and its architecture
    queued again with the same choices; one that was still being asked for is failed, and will be asked for again.

    Args:
        study: of the search.
        hosts: whether processes of other hosts may be asking right now, see `Sharing`.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    stale = [trial for trial in running if _is_stale(trial, hosts)]
    for trial in stale:
        try:
            _finish(study, trial)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            continue  # a process of another host was faster
    return len(stale)


def _finish(study: Study, trial: FrozenTrial) -> None:
    result = trial.user_attrs.get("result")
    if result is not None and "error" not in result:
        values = result.get("values")
        study.tell(trial.number, values, state=TrialState.PRUNED if values is None else TrialState.COMPLETE)
        return
    study.tell(trial.number, state=TrialState.FAIL)
    if result is None and trial.user_attrs.keys() & {"worker", "retry_of"}:
        queue_again(study, trial)


def queue_again(study: Study, trial: FrozenTrial) -> None:
    """Queue a failed trial's choices as a new trial."""
    queued = queued_params(trial)  # of one that was queued itself, and perhaps not asked for yet
    study.enqueue_trial({**queued, **trial.params}, user_attrs={"retry_of": trial.number})


def _is_stale(trial: FrozenTrial, hosts: bool) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker is None:  # it is asked for, or was when its process was killed
        return not hosts or trial.datetime_start is None or _age(trial.datetime_start) > ASKING_SECONDS
    if not is_alive(worker):
        return True
    return "beat" in trial.user_attrs and time.time() - trial.user_attrs["beat"] > SILENT_SECONDS


def _age(moment: datetime) -> float:
    return (datetime.now(moment.tzinfo) - moment).total_seconds()


def spent_seconds(study: Study) -> float:
    """Return how long evaluations were under way, where several at the same time count once."""
    spans = []
    for trial in study.get_trials(deepcopy=False):
        seconds = trial.user_attrs.get("result", {}).get("seconds", 0.0)
        if trial.datetime_start is not None:
            start = trial.datetime_start.timestamp()
            spans.append((start, start + seconds))
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def counts(trial: FrozenTrial) -> bool:
    """Return whether a trial is one of those that the recipe's `trials` asks for: evaluated, being so, or queued."""
    return trial.state != TrialState.FAIL and not refused(trial)


def refused(trial: FrozenTrial) -> bool:
    """Return whether a trial broke a constraint before anything was evaluated."""
    return "refused" in trial.user_attrs.get("result", {})


def failed(trial: FrozenTrial) -> bool:
    """Return whether something was raised when a trial was evaluated, so that it was left out."""
    return "failed" in trial.user_attrs.get("result", {})


def metrics_of(trial: FrozenTrial) -> dict[str, float]:
    """Return the metrics of an evaluated trial."""
    return dict(trial.user_attrs.get("result", {}).get("metrics", {}))


def architecture_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the choices that a trial evaluates or evaluated."""
    return dict(trial.user_attrs.get("architecture", trial.params))
