"""A search as plain values that any process can open: what local workers and Ray actors are handed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from compress.core.errors import InputError
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.datasets import DataConfig
from evaluators.tasks import DEFAULT, TaskConfig
from search.config import PRUNERS, PrunerConfig, SearchConfig
from search.feasible import check_constraints
from search.judge import Judge
from search.runner import Runner
from search.space import blamed_on, fitted, make_space
from search.strategies import StrategyContext, make_sampler
from search.study import architecture_of, metrics_of, open_study, sharing
from spaces.space import Space
from spaces.zoo import ModelConfig

DIGEST = "evaluator_digest"
"""The study's attribute that holds `Evaluator.digest`."""


@dataclass(frozen=True)
class SearchJob:
    """Everything that a worker needs to take part in a search.

    Attributes:
        config: the recipe's section `search`.
        data: its section `data`, or None.
        model: its section `model`, or None; the network that the space `channels` narrows.
        name: of the study.
        seed: the recipe's.
        device: where candidates are trained, such as "cpu" or "cuda:0".
        directory: the run's; absolute.
        task: its section `task`.
        others: devices beside `device`, which local workers take in turn.
    """

    config: SearchConfig
    data: DataConfig | None
    model: ModelConfig | None
    name: str
    seed: int
    device: str
    directory: Path
    task: TaskConfig = DEFAULT
    others: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Let the config say what is searched for; raises InputError where the task's metrics do not go with it."""
        if self.config.objective.maximize is None:
            object.__setattr__(self, "config", self.config.for_task(self.task))
        self.config.check_watched(self.task)

    def judge(self) -> Judge:
        """Return what gives architectures their metrics; raises InputError where the parts do not fit together."""
        self.config.executor.check()
        space = make_space(self.config.space, self.model)
        data = fitted(space, self.data, self.task, self.seed)
        own, supernet = self.directory / "evaluations", self.directory / "supernet"
        context = EvaluatorContext(space, data, self.device, self.seed, own, self.model, supernet)
        with blamed_on("search.evaluator"):
            evaluator = self.config.evaluator.make(context)
        meter = self.config.latency.make(context) if self.config.latency is not None else None
        judge = Judge(space, evaluator, self.config.objective, meter, self.seed, self.config.strategy.metrics)
        judge.check()
        return judge

    def open(self, judge: Judge | None = None) -> Runner:
        """Open the study, with the strategy and the pruner, and return what works on it.

        Raises:
            InputError: the parts do not fit together, or no architecture keeps the constraints; the study is not
                opened then.
        """
        judge = judge or self.judge()
        check_constraints(judge)
        sampler = make_sampler(self.config.strategy, self._context(judge))
        pruner = make_pruner(self.config.pruner)
        storage = self.config.executor.storage
        study = open_study(self.name, storage, self.directory, judge.objective.directions, sampler, pruner)
        _check_space(study, judge.space)
        _check_files(study, judge)
        _check_digest(study, judge)
        return Runner(study, judge, self.config.trials, sharing(storage, self.directory))

    def run(self, runner: Runner, deadline: float | None) -> None:
        """Let trials run where the executor says, until the study is complete or `deadline` (`time.monotonic`) passed.

        Raises:
            InputError: the executor cannot work here.
            CompressError: an evaluation raised one (its trial is marked as failed), most evaluations failed (those
                are left out), or a worker died.
        """
        self.config.executor.run(self, runner, deadline)

    def _context(self, judge: Judge) -> StrategyContext:
        space, objective = judge.space, judge.objective

        def feasible(choices: Any) -> bool:
            return objective.complaint(judge.free(space.check(choices, drop_untaken=True))) is None

        return StrategyContext(
            space=space,
            directions=objective.directions,
            trials=self.config.trials,
            seed=self.seed,
            feasible=feasible if objective.constraints else None,
            candidates=space.candidates,
            cost=judge.free,
            baseline=(lambda: objective.values(judge.evaluator.given())[0]) if judge.evaluator.has_given else None,
        )


def _check_space(study: Study, space: Space) -> None:
    """Raise InputError where the study's trials are of another space: its file or code has changed meanwhile."""
    allowed = space.distributions()
    for trial in study.get_trials(deepcopy=False):
        try:
            for name, distribution in trial.distributions.items():
                if allowed.get(name) != distribution:
                    raise InputError(f"{name} is another decision now")
            if trial.state == TrialState.COMPLETE:  # others may have been killed while decisions were being taken
                space.check(architecture_of(trial), drop_untaken=True)
        except InputError as error:
            raise InputError(
                f"search.space: {space.name} is not what it was when study {study.study_name} began (trial "
                f"{trial.number}: {error.problems[0]}); name another directory with --out"
            ) from error


def _check_files(study: Study, judge: Judge) -> None:
    """Raise InputError where a file that metrics are read off gives others than the study's trials were told."""
    for trial in study.get_trials(deepcopy=False):
        known = metrics_of(trial)
        if not known:
            continue
        now = judge.looked_up(judge.space.check(architecture_of(trial), drop_untaken=True))
        for name in sorted(known.keys() & now.keys()):
            if not math.isclose(known[name], now[name], rel_tol=1e-9):
                raise InputError(
                    f"search: {name} of trial {trial.number} was {known[name]:g} when study {study.study_name} was "
                    f"under way; the table that it is read off gives {now[name]:g} now; bring that table back, or "
                    "name another directory with --out"
                )


def _check_digest(study: Study, judge: Judge) -> None:
    """Note what the evaluator depends on; raise InputError where the study's trials were judged by something else."""
    now = judge.evaluator.digest
    known = study.user_attrs.get(DIGEST, now)
    if known != now and any(map(metrics_of, study.get_trials(deepcopy=False))):
        raise InputError(
            f"search.evaluator: the weights that it judges by are others than those by which the trials of study "
            f"{study.study_name} were judged; bring those back, or name another directory with --out"
        )
    if study.user_attrs.get(DIGEST) != now:
        study.set_user_attr(DIGEST, now)


def make_pruner(config: PrunerConfig | None) -> BasePruner | None:
    """Return Optuna's pruner; raises InputError for a value that it does not take."""
    if config is None:
        return None
    kind = PRUNERS[config.name]
    try:
        return kind(**config.options)
    except (TypeError, ValueError) as error:
        raise InputError(f"search.pruner.options: {kind.__name__} refuses {config.options}: {error}") from error
