"""What an architecture is worth to a search: metrics of the space, the evaluator and the latency meter together."""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from compress.core.errors import CompressError, InputError, did_you_mean, in_one_line, is_out_of_memory
from evaluators.candidates.evaluator import Evaluator, Metrics, Report, Stopped, numbers
from evaluators.candidates.latency import LatencyMeter
from search.objective import ObjectiveConfig
from spaces.architecture import Architecture
from spaces.space import Space


@dataclass
class Judge:
    """Metrics of architectures, from the space, the evaluator and the latency meter together.

    `also` are metrics that are wanted beside those of the objective.
    """

    space: Space
    evaluator: Evaluator
    objective: ObjectiveConfig
    meter: LatencyMeter | None
    seed: int
    also: tuple[str, ...] = ()

    @property
    def wanted(self) -> Collection[str]:
        """The metrics that objective and strategy need."""
        return tuple(dict.fromkeys((*self.objective.metrics, *self.also)))

    def check(self) -> None:
        """Raise InputError for a metric of the objective that nothing here gives."""
        if not isinstance(self.evaluator, Evaluator):
            raise InputError(f"search.evaluator.kind: it makes {self.evaluator!r:.80}, which is no Evaluator")
        for problem in unmeasured(self.wanted, self.evaluator.metrics, self.meter is not None):
            raise InputError(f"search.objective: {problem}")

    def free(self, arch: Architecture) -> Metrics:
        """Return the metrics that cost next to nothing."""
        metrics = numbers(self.evaluator.free(arch), f"{self._named}.free")
        if any(name in self.wanted and name not in metrics for name in ("macs", "params")):
            metrics = {**{name: float(value) for name, value in self.space.cost(arch).items()}, **metrics}
        if self.meter is not None and "latency_ms" in self.wanted:
            metrics |= self.meter.free(arch)
        return metrics

    def full(self, arch: Architecture, free: Metrics, report: Report | None = None) -> Metrics:
        """Return all wanted metrics of `arch`, given its free ones.

        Raises CompressError where the evaluator gives something else than numbers, or leaves one out.
        """
        metrics = dict(free)
        if self.meter is not None and "latency_ms" in self.wanted and "latency_ms" not in metrics:
            metrics["latency_ms"] = self.meter.measure(arch)
            if self.objective.complaint(metrics) is not None:
                return metrics  # too slow: not worth training
        missing = [name for name in self.wanted if name not in metrics]
        if missing:
            found = self.evaluator.evaluate(arch, missing, self.seed, report)
            metrics |= numbers(found, f"{self._named}.evaluate")
            if left_out := [name for name in missing if name not in metrics]:
                raise CompressError(f"{self._named}.evaluate was asked for {', '.join(left_out)}, and gave none")
        return metrics

    def looked_up(self, arch: Architecture) -> Metrics:
        """Return the metrics that are read off files."""
        metrics = dict(self.evaluator.looked_up(arch))
        return metrics if self.meter is None else metrics | self.meter.looked_up(arch)

    @property
    def _named(self) -> str:
        return f"search.evaluator: {type(self.evaluator).__name__}"


def unmeasured(wanted: Iterable[str], metrics: Iterable[str], timed: bool) -> Iterator[str]:
    """Yield a sentence for each metric that is wanted, but neither an evaluator's, nor a cost, nor timed."""
    known = {*metrics, "macs", "params"} | ({"latency_ms"} if timed else set())
    for name in wanted:
        if name not in known:
            hint = "; give search.latency" if name == "latency_ms" else did_you_mean(name, known)
            yield f"nothing measures {name!r}; allowed: {', '.join(sorted(known))}{hint}"


@dataclass(frozen=True)
class Outcome:
    """What came of an evaluation; `stopped` by the pruner, or failed, it has only the metrics that were free.

    `failed` says in a line what was raised for the architecture, `trace` where.
    """

    metrics: Metrics
    seconds: float
    stopped: bool = False
    failed: str | None = None
    trace: str = ""


def evaluate(judge: Judge, arch: Architecture, free: Metrics, report: Report | None = None) -> Outcome:
    """Return what `judge` says of `arch`.

    Whatever a library or a third party's code raises, and memory that is short, speaks against this architecture alone.
    What is raised as a CompressError says that something is wrong with the search.
    """
    started = time.perf_counter()
    try:
        return Outcome(judge.full(arch, free, report), time.perf_counter() - started)
    except Stopped:
        return Outcome(free, time.perf_counter() - started, stopped=True)
    except Exception as error:
        if isinstance(error, CompressError) and not is_out_of_memory(error.__cause__ or error):
            raise
        spent = time.perf_counter() - started
        return Outcome(free, spent, failed=in_one_line(error), trace=traceback.format_exc())
