"""Where trials run: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.job import SearchJob
    from search.runner import Runner


def run_search(job: SearchJob, runner: Runner, deadline: float | None) -> None:
    """Work where the job's section `executor` says, until the study is complete or `deadline` has passed.

    Args:
        job: what is searched.
        runner: on the job's study.
        deadline: on the clock `time.monotonic`; None: no limit.

    Raises:
        InputError: the executor cannot work here.
        CompressError: an evaluation failed (its trial is marked as failed), or a worker died.
    """
    from search.executors.local import run_local
    from search.executors.ray import run_ray

    run = {"local": run_local, "ray": run_ray}[job.config.executor.kind]
    run(job, runner, deadline)
