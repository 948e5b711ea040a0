"""One search, as every worker sees it: ask for an architecture, evaluate it, tell the study."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from optuna import Study, Trial, TrialPruned
from optuna.trial import FrozenTrial, TrialState

from compress.core.errors import CompressError, in_one_line
from compress.core.progress import say
from evaluators.candidates.evaluator import Metrics, Report
from search.background import every
from search.judge import Judge, Outcome, evaluate
from search.study import (
    BEAT_SECONDS,
    Sharing,
    architecture_of,
    counts,
    failed,
    is_alive,
    metrics_of,
    queue_again,
    revive,
    worker_name,
)
from spaces.architecture import Architecture

REFUSALS = 1000
"""So many architectures in a row that need no evaluation, and the search gives up."""
ALL_FAILED, MOST_FAILED = 3, 10
"""So many failed evaluations, if all have failed, or more than half of all, and the search gives up."""


@dataclass(frozen=True)
class Asked:
    """A trial to evaluate.

    Attributes:
        trial: RUNNING in the study.
        arch: what it is to evaluate.
        free: metrics that are known already.
        twin: the number of a trial under way that evaluates the same network.
    """

    trial: Trial
    arch: Architecture
    free: Metrics
    twin: int | None = None


class Runner:
    """Works on a study until it has as many evaluated trials as planned.

    What is known of a trial beside its parameters is in user attributes. `architecture`: the choices, where they are
    not the parameters. `worker`: the process that evaluates it; absent while it is being asked for. `result`:
    `metrics`, `violations` (by how much each constraint is broken), `seconds`, `seed`, and `values` (complete),
    `refused` or `broken` (which constraint, before or after evaluation), `failed` (what was raised for it, with
    `trace`), `same_as` (the trial that evaluated the same network), or `error` (what ended the search).
    """

    def __init__(self, study: Study, judge: Judge, trials: int, sharing: Sharing | None = None) -> None:
        self.study, self.judge, self.trials = study, judge, trials
        self.sharing = sharing or Sharing()
        self._worker = worker_name()
        self._known: dict[Architecture, FrozenTrial] = {}
        """The first trial that evaluated a network, by its canonical architecture."""
        self._networks: dict[int, Architecture] = {}
        """The canonical architecture of each trial looked at so far."""
        self._read: set[int] = set()

    def revive(self) -> int:
        """Take up the trials of killed workers, see `search.study.revive`; return how many there were."""
        with self.sharing.turn():
            return revive(self.study, self.sharing.hosts)

    def planned(self) -> int:
        """Return how many trials are evaluated, under way or queued."""
        return sum(map(counts, self._trials()))

    def ask(self) -> Asked | None:
        """Return a trial to evaluate; None where the search is complete, but for what other workers are at.

        Architectures that break a constraint which costs nothing to check are told as pruned at once; those that were
        evaluated before are told their known values.

        Raises:
            CompressError: nothing but refused architectures.
        """
        complaint: str | None = None
        for _ in range(REFUSALS):
            with self.sharing.turn():
                if self._full() or self._exhausted():
                    return None
                trial = self.study.ask()
                try:
                    if self._surplus(trial):
                        self.study.tell(trial, state=TrialState.FAIL)
                        return None
                    asked, complaint = self._consider(trial)
                except BaseException as error:
                    self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                    _tell_which(trial.number, trial.params, error)
                    raise
            if asked is not None:
                return asked
        raise CompressError(
            f"{REFUSALS} architectures in a row were known already or break a constraint (the last: {complaint}); "
            "loosen search.objective.constraints or lower search.trials"
        )

    def run(self, asked: Asked) -> None:
        """Evaluate and tell; whatever the evaluation raises marks the trial as failed first."""
        while asked.twin is not None:
            if self.settle(asked):
                return
            if not self._at_work(asked.twin):
                break
            time.sleep(0.05)
        try:
            with self._beating(asked.trial):
                outcome = evaluate(self.judge, asked.arch, asked.free, _reporter(self.study, asked.trial))
            self.tell(asked, outcome)
        except BaseException as error:
            self.fail(asked, f"{type(error).__name__}: {error}")
            _tell_which(asked.trial.number, asked.arch, error)
            raise

    def settle(self, asked: Asked) -> bool:
        """Tell a trial what its twin found, where that has ended well; return whether it has."""
        known = self._lookup(asked.arch, self._trials())
        if known is not None:
            self._repeat(asked.trial, known)
        return known is not None

    def tell(self, asked: Asked, outcome: Outcome) -> None:
        """Enter what came of an evaluation.

        Raises:
            CompressError: it failed, as most of those before.
        """
        if outcome.failed is not None:
            self._leave_out(asked, outcome)
            return
        if outcome.stopped:
            self._note(asked.trial, outcome.metrics, seconds=outcome.seconds)
            self.study.tell(asked.trial, state=TrialState.PRUNED)
            return
        metrics = outcome.metrics
        complaint = self.judge.objective.complaint(metrics)
        if complaint is None:
            odd = [name for name in self.judge.wanted if not math.isfinite(metrics.get(name, 0.0))]
            complaint = f"{odd[0]} is {metrics[odd[0]]}, no finite number" if odd else None
        values = self.judge.objective.values(metrics) if complaint is None else []
        if not all(map(math.isfinite, values)):
            complaint = "its value is no finite number"
        if complaint is not None:
            self._note(asked.trial, metrics, seconds=outcome.seconds, broken=complaint)
            self.study.tell(asked.trial, state=TrialState.PRUNED)
            return
        # Killed after this line, the trial is finished by `revive`.
        self._note(asked.trial, metrics, seconds=outcome.seconds, values=values)
        self.study.tell(asked.trial, values)

    def _leave_out(self, asked: Asked, outcome: Outcome) -> None:
        """Enter that an evaluation failed; the search goes on, unless most have."""
        number, why = asked.trial.number, outcome.failed
        about = {"failed": why, "trace": outcome.trace, "broken": f"failed: {why}"}
        self._note(asked.trial, outcome.metrics, seconds=outcome.seconds, **about)
        self.study.tell(asked.trial, state=TrialState.PRUNED)
        trials = [trial for trial in self._trials() if trial.state.is_finished() and counts(trial)]
        bad = sum(map(failed, trials))
        if 2 * bad > len(trials) and bad >= (ALL_FAILED if bad == len(trials) else MOST_FAILED):
            share = f"the evaluation of {bad} of {len(trials)} architectures failed"
            error = CompressError(f"{share}, the last {_which(number, asked.arch)}: {why}")
            error.add_note(outcome.trace)
            raise error
        say(f"search: {_which(number, asked.arch)} failed and is left out: {why}")

    def fail(self, asked: Asked, error: str) -> None:
        """Mark a trial as failed, unless it is finished."""
        if not self._trials()[asked.trial.number].state.is_finished():
            self._note(asked.trial, asked.free, error=error[:500])
            self.study.tell(asked.trial, state=TrialState.FAIL)

    def give_back(self, asked: Asked) -> None:
        """Queue an architecture again that will not be evaluated here."""
        self.study.tell(asked.trial, state=TrialState.FAIL)
        queue_again(self.study, self._trials()[asked.trial.number])

    def _full(self) -> bool:
        """Return whether no trial is left to ask for; trials of workers that died meanwhile are queued again first."""
        if self.planned() < self.trials:
            return False
        revive(self.study, self.sharing.hosts)
        trials = self._trials()
        queued = any(trial.state == TrialState.WAITING for trial in trials)
        return sum(map(counts, trials)) >= self.trials and not queued

    def _exhausted(self) -> bool:
        """Return whether the strategy has nothing left to try."""
        ask = getattr(self.study.sampler, "is_exhausted", None)  # Optuna's GridSampler has one too
        return ask is not None and bool(ask(self.study))

    def _surplus(self, trial: Trial) -> bool:
        """Return whether trials that other hosts asked for at the same moment already fill the plan."""
        return sum(counts(other) for other in self._trials()[: trial.number]) >= self.trials

    def _consider(self, trial: Trial) -> tuple[Asked | None, str | None]:
        """Return a trial that needs evaluation, or what spoke against it (if anything); such a one is told."""
        try:
            arch = self.judge.space.suggest(trial)
        except TrialPruned as error:  # the space's own constraints, which samplers of others do not know
            self._note(trial, {}, refused=str(error))
            self.study.tell(trial, state=TrialState.PRUNED)
            return None, str(error)
        except CompressError:
            raise
        except Exception as error:  # of a sampler, which may be a third party's
            which = f"trial {trial.number}: {type(self.study.sampler).__name__}"
            raise CompressError(f"search.strategy: {which}: {in_one_line(error)}") from error
        if dict(arch) != trial.params:
            trial.set_user_attr("architecture", dict(arch))
        free = self.judge.free(arch)
        complaint = self.judge.objective.complaint(free)
        if complaint is not None:
            self._note(trial, free, refused=complaint)
            self.study.tell(trial, state=TrialState.PRUNED)
            return None, complaint
        trials = self._trials()
        known = self._lookup(arch, trials)
        if known is not None:
            self._repeat(trial, known)
            return None, None
        twin = self._twin(trial, arch, trials)
        trial.set_user_attr("worker", self._worker)
        return Asked(trial, arch, free, twin), None

    def _repeat(self, trial: Trial, known: FrozenTrial) -> None:
        """Tell a trial what is known of its network."""
        result = known.user_attrs.get("result", {"values": known.values})
        found = {name: result[name] for name in ("values", "broken") if name in result}
        self._note(trial, metrics_of(known), same_as=known.number, **found)
        if known.state == TrialState.COMPLETE:
            self.study.tell(trial, known.values)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)

    def _note(self, trial: Trial, metrics: Metrics, **more: Any) -> None:
        """Write down what is known of a trial; what is not finite counts as not measured, as in report.json."""
        violations = self.judge.objective.violations(metrics)
        every = {name: violations.get(name, 0.0) for name in self.judge.objective.constraints}
        measured = {name: value for name, value in metrics.items() if math.isfinite(value)}
        result = {"metrics": measured, "violations": every, "seed": self.judge.seed, **more}
        trial.set_user_attr("result", result)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _lookup(self, arch: Architecture, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """Return the trial that evaluated the same network, if there is one."""
        for trial in trials:
            if trial.number not in self._read and trial.state.is_finished():
                self._read.add(trial.number)
                if counts(trial):
                    self._known.setdefault(self._network(trial), trial)
        return self._known.get(self.judge.space.canonical(arch))

    def _twin(self, trial: Trial, arch: Architecture, trials: Sequence[FrozenTrial]) -> int | None:
        """Return the number of a trial under way that evaluates the same network."""
        network = self.judge.space.canonical(arch)
        for other in trials:
            if other.state == TrialState.RUNNING and "worker" in other.user_attrs and other.number != trial.number:
                if self._network(other) == network:
                    return other.number
        return None

    def _network(self, trial: FrozenTrial) -> Architecture:
        """Return the canonical architecture of a trial whose choices are all taken."""
        if trial.number not in self._networks:
            space = self.judge.space
            arch = space.check(architecture_of(trial), drop_untaken=True)
            self._networks[trial.number] = space.canonical(arch)
        return self._networks[trial.number]

    def _at_work(self, number: int) -> bool:
        trial = self._trials()[number]
        return trial.state == TrialState.RUNNING and is_alive(trial.user_attrs["worker"])

    @contextmanager
    def _beating(self, trial: Trial) -> Iterator[None]:
        """Show processes of other hosts, which cannot ask after this one, that it is alive."""
        if not self.sharing.hosts:
            yield
            return

        def beat() -> None:
            trial.set_user_attr("beat", time.time())

        beat()
        with every(BEAT_SECONDS, beat):
            yield


def _tell_which(number: int, choices: Mapping[str, Any], error: BaseException) -> None:
    """Raise a CompressError that names the architecture for what a third party's code, or a library, has raised."""
    if isinstance(error, Exception) and not isinstance(error, CompressError):
        raise CompressError(f"{_which(number, choices)}: {in_one_line(error)}") from error


def _which(number: int, choices: Mapping[str, Any]) -> str:
    """Return how a trial is called in sentences."""
    chosen = shorten(str(dict(choices)), 200, placeholder=" ...")
    return f"trial {number}, {chosen}" if choices else f"trial {number}"


def _reporter(study: Study, trial: Trial) -> Report | None:
    if len(study.directions) > 1:
        return None

    def report(step: int, value: float) -> bool:
        trial.report(value, step)
        return trial.should_prune()

    return report
