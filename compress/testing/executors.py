"""What a search relies on in an executor."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from optuna.trial import FrozenTrial

from compress.core.errors import CompressError
from evaluators.tasks import DEFAULT
from search.config import SearchConfig
from search.executors.executor import ExecutorBase
from search.job import SearchJob

MAIN = DEFAULT.metrics[0].name
HOLE = (1, 2, 0)
"""The one row of the table without a result."""


def check_executor(config: ExecutorBase) -> None:
    """Let small searches over a table run where the executor says: one after its deadline, one to its end, one on.

    Raises:
        AssertionError: trials begin after the deadline, the search ends early or late, an architecture is evaluated
            twice, trials of before are lost, or an evaluation that fails is not told.
        InputError: the executor cannot work here.
    """
    config.check()
    with TemporaryDirectory() as folder:
        directory = Path(folder)
        _run(_job(config, directory, 10), time.monotonic())
        begun = len(_trials(_job(config, directory, 10)))
        assert not begun, f"executor {config.kind} begins {begun} trials after the deadline"
        before: list[FrozenTrial] = []
        for trials in (10, 16):
            job = _job(config, directory, trials)
            _run(job)
            found = _trials(job)
            _check_complete(config.kind, found, trials)
            kept = [trial.params for trial in found[: len(before)]] == [trial.params for trial in before]
            assert kept, f"executor {config.kind}: a search that goes on has lost trials"
            before = found
    with TemporaryDirectory() as folder:
        broken = _job(config, Path(folder), 27, holes=True)
        try:
            _run(broken)
        except CompressError:
            pass
        else:
            raise AssertionError(f"executor {config.kind} keeps to itself that an evaluation failed")
        states = Counter(trial.state.name for trial in _trials(broken))
        assert states["FAIL"], f"executor {config.kind}: an evaluation failed, and no trial is marked so: {states}"


def _check_complete(kind: str, found: list[FrozenTrial], trials: int) -> None:
    states = dict(Counter(trial.state.name for trial in found))
    assert states == {"COMPLETE": trials}, f"executor {kind}: of {trials} trials, there are {states}"
    measured = [str(trial.params) for trial in found if "same_as" not in trial.user_attrs["result"]]
    assert len(set(measured)) == len(measured), f"executor {kind} evaluates an architecture twice"


def _job(executor: ExecutorBase, directory: Path, trials: int, holes: bool = False) -> SearchJob:
    """Return a search over the 27 rows of a table; all of them, with a hole, where it is to fail."""
    table = directory / "table.csv"
    rows = [
        f"{a},{b},{c},{'' if holes and (a, b, c) == HOLE else a - b + c / 10}"
        for a, b, c in itertools.product(range(3), repeat=3)
    ]
    table.write_text("\n".join([f"a,b,c,{MAIN}", *rows]) + "\n", encoding="utf-8")
    config = SearchConfig.model_validate(
        {
            "space": {"name": "table", "options": {"path": str(table), "decisions": ["a", "b", "c"]}},
            "strategy": {"name": "grid"} if holes else {"name": "random"},
            "evaluator": {"kind": "tabular", "metrics": {MAIN: MAIN}},
            "trials": trials,
        }
    )
    config = config.model_copy(update={"executor": executor})
    return SearchJob(config, None, None, "tried", 0, "cpu", directory)


def _run(job: SearchJob, deadline: float | None = None) -> None:
    runner = job.open()
    runner.revive()
    job.run(runner, deadline)


def _trials(job: SearchJob) -> list[FrozenTrial]:
    return job.open().study.get_trials(deepcopy=False)
