"""A search as an experiment of Ray Tune, new or taken up again."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

from search.executors.ray import RayExecutor
from search.executors.ray.actor import Evaluation
from search.executors.ray.driver import Listener, Places, StudySearch, driving
from search.job import SearchJob
from search.runner import Runner

EXPERIMENT = "ray"


def tune_study(job: SearchJob, runner: Runner, deadline: float | None) -> None:
    """Run Ray Tune until the study is complete, or `deadline` has passed; Ray is initialised.

    Raises:
        CompressError: an evaluation failed, or its process died too often.
    """
    search = StudySearch(job, runner, deadline)
    # By default Tune starts one actor at a time; `Places` has the rest of what keeps all nodes at work.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(search.room())
    with driving(job.name, search):
        search.mourn(_tuner(job, search).fit().errors)
        while not search.ended():  # what was restored says: finished
            search.mourn(_new_tuner(job, search).fit().errors)
    if search.complete and _place(job) == str(job.directory):
        shutil.rmtree(job.directory / EXPERIMENT, ignore_errors=True)  # one folder per trial, all empty


def _tuner(job: SearchJob, search: StudySearch) -> tune.Tuner:
    """Return the tuner of an interrupted search, or a new one.

    What was under way comes back through the study, which knows better than Tune's last snapshot: Tune continues
    nothing itself.
    """
    path = f"{_place(job)}/{EXPERIMENT}"
    if tune.Tuner.can_restore(path):
        with suppress(Exception):  # a kill can damage Tune's files; the study is whole
            return tune.Tuner.restore(path, trainable=_trainable(job), resume_unfinished=False)
    return _new_tuner(job, search)


def _new_tuner(job: SearchJob, search: StudySearch) -> tune.Tuner:
    config = job.config.executor
    assert isinstance(config, RayExecutor)
    settings = tune.TuneConfig(
        search_alg=search,
        scheduler=Places(job.name),
        num_samples=-1,
        reuse_actors=True,
        trial_name_creator=_name,
        trial_dirname_creator=_name,
    )
    run = tune.RunConfig(
        name=EXPERIMENT,
        storage_path=_place(job),
        stop=Listener(job.name),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        failure_config=tune.FailureConfig(max_failures=config.failures),
        verbose=0,
    )
    return tune.Tuner(_trainable(job), tune_config=settings, run_config=run)


def _place(job: SearchJob) -> str:
    config = job.config.executor
    assert isinstance(config, RayExecutor)
    return config.checkpoints or str(job.directory)


def _name(trial: Any) -> str:
    return str(trial.trial_id)


def _trainable(job: SearchJob) -> Any:
    config = job.config.executor
    assert isinstance(config, RayExecutor)
    demand = config.demand()
    resources = {"cpu": demand.pop("CPU"), "gpu": demand.pop("GPU"), **demand}
    return tune.with_resources(tune.with_parameters(Evaluation, job=job, folder=str(Path.cwd())), resources)
