"""Figures of a search's trials as TensorBoard logs, written by the process that drives it."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from compress.core.errors import InputError
from search.background import every
from search.outcome import evaluated
from search.study import metrics_of

LOOK_SECONDS = 5.0
"""So often the study is asked for trials that have finished."""


def writer_class() -> Any:
    """Return the class SummaryWriter of PyTorch or tensorboardX; InputError where neither can be used."""
    for name in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            return importlib.import_module(name).SummaryWriter
        except ImportError:
            continue
    raise InputError("search.tensorboard: neither tensorboard nor tensorboardX is installed: pip install tensorboard")


@contextmanager
def logged(study: Study, names: Sequence[str], folder: Path) -> Iterator[None]:
    """Write each trial of `study` to `folder` when it has finished, whichever process evaluated it.

    The study alone remembers what there is to write: logs that an interrupted search left are written anew.

    Args:
        study: of the search.
        names: of its values.
        folder: for the event file; what is in it is deleted.

    Raises:
        InputError: no package that writes such files is installed.
    """
    make = writer_class()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = TrialLog(make(str(folder)), study, names)
    try:
        with every(LOOK_SECONDS, log.write):
            yield
    finally:
        log.write()
        log.writer.close()


class TrialLog:
    """Writes finished trials in the order in which they ended; a figure's step is its trial's place in that order.

    Scalars: `objective/NAME` and `best/NAME`, the best so far, of complete trials; `metrics/NAME`, `trial` (its number
    in the study) and `seconds` of all that were evaluated.
    """

    def __init__(self, writer: Any, study: Study, names: Sequence[str]) -> None:
        self.writer, self.study, self.names = writer, study, names
        self._written: set[int] = set()
        self._best: dict[str, float] = {}

    def write(self) -> None:
        """Write the trials that have finished since the last call."""
        for trial in evaluated(self.study):
            if trial.number not in self._written:
                self._written.add(trial.number)
                self._write(trial, len(self._written))
        self.writer.flush()

    def _write(self, trial: FrozenTrial, step: int) -> None:
        figures = {f"metrics/{name}": value for name, value in metrics_of(trial).items()}
        if trial.state == TrialState.COMPLETE:
            figures |= self._values(trial)
        seconds = trial.user_attrs.get("result", {}).get("seconds")
        figures |= {"trial": trial.number} | ({} if seconds is None else {"seconds": seconds})
        moment = None if trial.datetime_complete is None else trial.datetime_complete.timestamp()
        for tag, value in figures.items():
            self.writer.add_scalar(tag, value, step, moment)

    def _values(self, trial: FrozenTrial) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, value, direction in zip(self.names, trial.values, self.study.directions, strict=True):
            better = max if direction.name == "MAXIMIZE" else min
            self._best[name] = better(value, self._best.get(name, value))
            figures |= {f"objective/{name}": value, f"best/{name}": self._best[name]}
        return figures
