"""NetAdapt: a trained network made cheaper one decision at a time, until it meets a target."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from compress.core.errors import InputError
from search.strategies.adaptation import Adaptation, Judged, Key, Progress, Step, key_of
from search.strategies.sampler import Choices, Finished, Params, SpaceSampler
from search.strategies.strategy import StrategyBase, StrategyContext, strategies

Mark = tuple[datetime, int]
"""When a trial was finished, and its number."""
_SETTLED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class Memory:
    """What followed from the trials seen so far."""

    marks: set[Mark] = field(default_factory=set)
    latest: Mark = (datetime.min, 0)
    judged: dict[Key, Judged] = field(default_factory=dict)
    path: tuple[Step, ...] = ()

    def continues_in(self, marks: Collection[Mark]) -> bool:
        """Return whether `marks` are those seen so far and later ones."""
        return self.marks.issubset(marks) and all(mark > self.latest for mark in set(marks) - self.marks)


class NetAdaptSampler(SpaceSampler):
    """Proposes the networks of NetAdapt's iterations; a function of the finished trials, in whatever order they came.

    The first trial is the seed: every decision at its largest choice. In each iteration every decision is made
    smaller on its own, just so far that the cost falls by `delta` or more; decisions that cannot save that much are
    left out. When all are judged, one is accepted and the next iteration starts from it. It ends with the first
    network that costs at most `target`, or where no decision saves enough any more.

    A proposal whose trial failed is proposed again; one that was pruned is not accepted. While the last proposals of
    an iteration are judged by others, one of those is proposed, since nothing else can be. A loop of Optuna's
    (`study.optimize`) ends by itself; with ask and tell, `is_exhausted` says when.

    Args:
        search_space: numeric decisions.
        cost: what parameters cost: latency, MACs, ...; it should fall as any decision becomes smaller.
        target: cost to reach, as a fraction of the seed's.
        delta: least saving per iteration, as a fraction of the seed's cost.
        decay: factor on `delta` from one iteration to the next.
        select: which proposal is accepted: least score lost per cost saved (MobileNetV3), or the highest score (the
            original).
        taken: gives the decisions that parameters take, and no others, in spaces with conditions.
        seed, feasible: as for `SpaceSampler`; a proposal that is not feasible is left out.
    """

    def __init__(
        self,
        search_space: Mapping[str, CategoricalDistribution],
        cost: Callable[[Params], float],
        *,
        target: float = 0.7,
        delta: float = 0.02,
        decay: float = 1.0,
        select: Literal["ratio", "score"] = "ratio",
        taken: Callable[[Params], Params] = dict,
        seed: int = 0,
        feasible: Callable[[Params], bool] | None = None,
    ) -> None:
        super().__init__(search_space, seed=seed, feasible=feasible)
        self.rules = Adaptation(
            {name: each.choices for name, each in search_space.items()},
            cost,
            target=target,
            delta=delta,
            decay=decay,
            select=select,
            taken=taken,
            feasible=feasible,
        )
        self._memory = Memory()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of `trial`."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return self._next(self.progress(study), [other.params for other in trials if other.number != trial.number])

    def propose(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, generator: random.Random
    ) -> Params:
        """Return a network of the iteration that these trials have come to."""
        judged = {key_of(trial.params): Judged(trial.number, trial.score) for trial in reversed(finished)}
        return self._next(self.rules.follow(judged), running)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """End a loop of Optuna's where the adaptation is over with this trial, which the study does not have yet."""
        super().after_trial(study, trial, state, values)
        before, key = self.progress(study), key_of(trial.params)
        if state not in _SETTLED or {network.key for network in before.waiting} - {key}:
            return
        judged = {**self._memory.judged, key: self._result(trial.number, values, self._sign(study))}
        if not self.rules.follow(judged, before.path).waiting:
            with suppress(RuntimeError):  # what it raises where nothing loops
                study.stop()

    def is_exhausted(self, study: Study) -> bool:
        """Return whether the adaptation is over, so that nothing is left to evaluate."""
        return not self.progress(study).waiting

    def winners(self, study: Study) -> list[FrozenTrial]:
        """Return the trials of the accepted networks, the last one first and the seed last."""
        trials = study.get_trials(deepcopy=False)
        path = [step.judged for step in reversed(self.progress(study).path)]
        return [trials[judged.number] for judged in path if judged.score is not None]

    def summary(self, study: Study) -> str:
        """Return in one line how the adaptation went."""
        found = self.progress(study)
        if not found.path:
            return "netadapt: the seed has not been judged"
        share, target = found.path[-1].network.cost / self.rules.widest.cost, self.rules.target
        line = f"netadapt: {len(found.path) - 1} steps to {share:.1%} of the seed's cost (target {target:.1%})"
        if found.waiting:
            return f"{line}; the trials ended before the target"
        return line if share <= target else f"{line}; no proposal saves enough to go on"

    def progress(self, study: Study) -> Progress:
        """Return how far the finished trials of `study` have come.

        What earlier calls found is kept as long as trials only come after those that were there.
        """
        trials = study.get_trials(deepcopy=False, states=_SETTLED)
        marks = {(trial.datetime_complete, trial.number): trial for trial in trials if trial.datetime_complete}
        if not self._memory.continues_in(marks):
            self._memory = Memory()
        memory, sign = self._memory, self._sign(study)
        for mark in sorted(marks.keys() - memory.marks):
            trial = marks[mark]
            values = trial.values if trial.state == TrialState.COMPLETE else None
            memory.judged.setdefault(key_of(trial.params), self._result(trial.number, values, sign))
            memory.marks.add(mark)
            memory.latest = mark
        found = self.rules.follow(memory.judged, memory.path)
        memory.path = found.path
        return found

    def _result(self, number: int, values: Sequence[float] | None, sign: int) -> Judged:
        return Judged(number, sign * float(values[0]) if values else None)

    def _next(self, progress: Progress, running: Sequence[Params]) -> Params:
        under_way = {key_of(params) for params in running}
        free = [network for network in progress.waiting if network.key not in under_way]
        return dict((free or progress.waiting or (progress.path[-1].network,))[0].params)


@strategies.register("netadapt")
class NetAdaptStrategy(StrategyBase):
    """Shrinks the widest network step by step to a target; for spaces of widths, such as `channels`."""

    name: Literal["netadapt"] = "netadapt"
    resource: Literal["latency_ms", "macs", "params"] = Field(
        "latency_ms", description="what has to fall; latency_ms needs latency: {mode: table}"
    )
    target: float = Field(0.7, gt=0, lt=1, description="where it ends, as a fraction of the widest network's resource")
    delta: float = Field(0.02, gt=0, lt=1, description="least saving per step, as a fraction of the same; paper: 0.01")
    decay: float = Field(1.0, gt=0, le=1, description="factor on delta from step to step; the original has 0.96")
    select: Literal["ratio", "score"] = Field(
        "ratio", description="accepted: least score lost per resource saved (MobileNetV3), or highest score (original)"
    )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The resource."""
        return (self.resource,)

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler; raises InputError where the resource is not known without measuring."""
        space, free = context.space, context.cost
        if context.candidates is not None:
            raise InputError("search.strategy: netadapt needs every combination of choices; this space is a list")

        def taken(params: Params) -> Params:
            return dict(space.complete(params, lambda decision: max(decision.choices)))

        def cost(params: Params) -> float:
            known = {} if free is None else free(space.check(params, drop_untaken=True))
            if self.resource not in known:
                raise InputError(
                    f"search.strategy: netadapt needs {self.resource} of every network before any is measured; give "
                    "search.latency: {mode: table, table: FILE} (compress latency-table), or take resource: macs"
                )
            return known[self.resource]

        sampler = NetAdaptSampler(
            context.distributions,
            cost,
            taken=taken,
            seed=context.seed,
            feasible=context.feasible,
            **self.model_dump(exclude={"name", "resource"}),
        )
        if context.feasible is not None and not context.feasible(sampler.rules.widest.params):
            raise InputError(
                "search.objective.constraints: the widest network, where netadapt starts, breaks one; "
                "say what is to be reached with search.strategy.target"
            )
        return sampler
