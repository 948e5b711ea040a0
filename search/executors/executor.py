"""What an executor is: a config that lets trials run somewhere."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated

from compress.core.config import Config
from compress.core.registry import Registry
from compress.core.sections import OneOf

if TYPE_CHECKING:
    from search.job import SearchJob
    from search.runner import Runner


class ExecutorBase(Config):
    """Where trials run. A subclass has a field `kind: Literal["..."]`, its options, `storage` and `run`."""

    kind: str
    storage: str | None

    def check(self) -> None:
        """Raise InputError, before the study is opened, where what the executor stands on is not installed."""

    @abstractmethod
    def run(self, job: SearchJob, runner: Runner, deadline: float | None) -> None:
        """Work until the study is complete or `deadline` has passed.

        Args:
            job: what is searched.
            runner: on the job's study, which is in the database `storage`, or in a file of the run where that is None.
            deadline: on the clock `time.monotonic`; None: no limit.

        Raises:
            InputError: the executor cannot work here.
            CompressError: an evaluation raised one (its trial is marked as failed), most evaluations failed (those
                are left out), or a worker died.
        """


executors: Registry[type[ExecutorBase]] = Registry("executor", home="search.executors", base=ExecutorBase)

ExecutorConfig = Annotated[ExecutorBase, OneOf(executors, "kind")]
"""The section `search.executor` of a recipe: the config of one of the executors, told apart by `kind`."""
