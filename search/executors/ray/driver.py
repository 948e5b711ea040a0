"""The driver of a search on Ray Tune: asks the study, hands out batches, and tells what the actors found."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from compress.core.errors import CompressError, InputError
from compress.core.progress import track
from search.executors.ray import RayExecutor, room
from search.job import SearchJob
from search.judge import Outcome
from search.runner import Asked, Runner

_live: dict[str, StudySearch] = {}


def _driven(name: str) -> StudySearch:
    """Return the search that this process drives, on the study called `name`."""
    return _live[name]


@contextmanager
def driving(name: str, search: StudySearch) -> Iterator[None]:
    """Let Tune find `search` by the name of its study; close it in the end."""
    _live[name] = search
    try:
        yield
    finally:
        del _live[name]
        search.close()


@dataclass
class HandedOut:
    """What one Tune trial evaluates, and how many of these are told."""

    asked: list[Asked]
    told: int = 0


class StudySearch(Searcher):
    """Asks and tells a search's study for Ray Tune.

    OptunaSearch makes a Tune trial of whatever is proposed: it cannot refuse an architecture that breaks a constraint,
    reuse a known result, hand out batches, or note what reports and resumed searches read.
    """

    def __init__(self, job: SearchJob, runner: Runner, deadline: float | None) -> None:
        super().__init__()
        assert isinstance(job.config.executor, RayExecutor)
        self.executor, self.name = job.config.executor, job.name
        self.runner, self.deadline = runner, deadline
        self.complete = False
        self.failure: CompressError | None = None
        self._batches: dict[str, HandedOut] = {}
        self._waiting: list[Asked] = []
        """Left over from batches that were stopped."""
        self._all_asked = False
        self._twins: list[Asked] = []
        self._dead: list[Asked] = []
        missing = max(0, runner.trials - runner.planned())
        self._bar = track(itertools.repeat(None), "searching", total=missing)

    def __reduce__(self) -> Any:
        """Tune stores its searcher with the experiment; what comes back is the search of the process that restores."""
        return _driven, (self.name,)

    def ended(self) -> bool:
        """Return whether nothing more is to be done."""
        return self.complete or self.failure is not None or self._late()

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def room(self) -> int:
        """Return how many batches there may be at a time; where not limited, one waits for room (autoscaling)."""
        return room(self.executor) + 1 if self.executor.workers is None else self.executor.workers

    def places(self) -> int:
        """Return how many batches can run at a time."""
        there = room(self.executor)
        return there if self.executor.workers is None else min(there, self.executor.workers)

    def suggest(self, trial_id: str) -> Any:
        """Return the next batch; None where there is none now, FINISHED where there never will be."""
        if len(self._batches) >= self.room():
            return None
        batch = [] if self._late() else self._ask()
        if batch:
            self._batches[trial_id] = HandedOut(batch)
            return {"batch": [{"choices": dict(asked.arch), "free": asked.free} for asked in batch]}
        if self._batches:
            return None
        self.complete = self._all_asked
        return Searcher.FINISHED

    def _ask(self) -> list[Asked]:
        size = self.executor.batch
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        while len(batch) < size and not self._all_asked:
            asked = self.runner.ask()
            if asked is None:
                self._all_asked = True
                break
            (batch if asked.twin is None else self._twins).append(asked)
        return batch

    def hear(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Take in what an actor says; return whether the pruner stops what it is at."""
        batch = self._batches[trial_id]
        if result["index"] < batch.told:  # evaluated again, since a checkpoint was lost
            return False
        asked = batch.asked[batch.told]
        if "value" in result:
            if len(self.runner.study.directions) > 1:
                return False
            asked.trial.report(result["value"], result["step"])
            return asked.trial.should_prune()
        batch.told += 1
        if "error" in result:
            self.runner.fail(asked, result["error"])
            self.failure = (InputError if result["input"] else CompressError)(result["error"])
        else:
            self._tell(asked, Outcome(**result["outcome"]))
        return False

    def _tell(self, asked: Asked, outcome: Outcome) -> None:
        try:
            self.runner.tell(asked, outcome)
        except CompressError as error:  # most evaluations have failed
            self.failure = error
        self._twins = [twin for twin in self._twins if not self.runner.settle(twin)]
        next(self._bar, None)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: the `Listener` has told already."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take back what a batch did not get to: its process died too often, or the pruner stopped it."""
        batch = self._batches.pop(trial_id)
        left = batch.asked[batch.told :]
        if error:
            self._dead += left[:1]
            self.failure = CompressError("a trial's process died")
        elif left:
            self._tell(left[0], Outcome(left[0].free, (result or {}).get("seconds", 0.0), stopped=True))
        self._waiting += left[1:]

    def mourn(self, errors: list[Exception]) -> None:
        """Raise for what went wrong, if anything; Tune's `errors` say what killed a trial's process."""
        if self._dead:
            said = str(errors[-1]).strip().splitlines()[-1] if errors else "unknown"
            for asked in self._dead:
                self.runner.fail(asked, said)
            times = self.executor.failures + 1
            raise CompressError(f"trial {self._dead[0].trial.number} failed {times} times on Ray; the last: {said}")
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Queue again what was not evaluated."""
        running = [asked for batch in self._batches.values() for asked in batch.asked[batch.told :]]
        for asked in [*running, *self._waiting, *self._twins]:
            self.runner.give_back(asked)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: all there is to know is in the study."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


class Places(FIFOScheduler):
    """First in, first out, but an actor that is free goes to the first trial that has none.

    Tune gives it to the first trial that waits, and gives up the actor that is being started for that one: with trials
    shorter than the start of an actor, all but the first node would stay idle.
    """

    def __init__(self, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial that runs next: of those that wait, the first beyond the places where actors start."""
        trials: list[Trial] = tune_controller.get_trials()
        waiting = [trial for trial in trials if trial.status == Trial.PENDING]
        if not waiting:
            return None
        running = sum(trial.status == Trial.RUNNING for trial in trials)
        starting = max(0, _driven(self.name).places() - running - 1)
        return waiting[min(starting, len(waiting) - 1)]


class Listener(tune.Stopper):
    """Hands every result on to the search; stops the trials that the pruner stops, and all after a failure."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether a trial is to stop."""
        return _driven(self.name).hear(trial_id, result)

    def stop_all(self) -> bool:
        """Return whether the whole search is to stop."""
        return _driven(self.name).failure is not None
