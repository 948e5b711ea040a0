"""report.json as typed records, and what such records are."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from compress.core.problems import under, validated
from evaluators.latency.statistic import by_cpu_time

if TYPE_CHECKING:
    from evaluators.tasks import Metric


def _finite(value: Any) -> Any:
    """Count NaN and infinities as not measured."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_figure(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def empty_if_null(value: Any) -> Any:
    """Count null as nothing known."""
    return {} if value is None else value


Number = Annotated[int | float | None, BeforeValidator(_finite)]


class Record(BaseModel):
    """Part of a file that another part of the toolkit wrote; keys not shown here are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Latency(Record):
    """METRICS.latency_ms: milliseconds per batch and how they were taken."""

    p10: Number = None
    p50: Number = None
    p90: Number = None
    p99: Number = None
    min: Number = None
    cpu_p50: Number = None
    runs: Number = None
    threads: Number = None
    batch: Number = None
    provider: str | None = None
    contended: bool | None = None

    def by_cpu(self, busy: bool | None) -> bool:
        """Whether CPU time is what is told, on a machine that was `busy` with other work or not."""
        return by_cpu_time({**self.model_dump(), "contended": busy})

    @property
    def told(self) -> float | None:
        """The one figure that stands for it, in ms: the median, of CPU time where the machine was busy."""
        return self.cpu_p50 if self.by_cpu(self.contended) else self.p50


class Metrics(Record):
    """METRICS of one model; what was not measured is None. The metrics of its task are further keys, see `value`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    params: Number = None
    nonzero_params: Number = None
    macs: Number = None
    nonzero_macs: Number = None
    onnx_bytes: Number = None
    onnx_parity_max_rel: Number = None
    latency_ms: Annotated[Latency, BeforeValidator(empty_if_null)] = Latency()

    @model_validator(mode="before")
    @classmethod
    def _figures(cls, values: Any) -> Any:
        """Pass over whatever else is no figure."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key in cls.model_fields or is_figure(value)}

    def value(self, name: str) -> float | None:
        """Return the metric `name` of the task; None where it was not measured."""
        value: float | None = (self.model_extra or {}).get(name)
        return value


class LatencyRatio(Record):
    """Baseline time divided by final time, from interleaved blocks."""

    median: Number = None
    ci95: tuple[Number, Number] | None = None
    blocks: Number = None


class Proxy(Record):
    """How well one kind of score ranks networks; what is not defined is None. `regret` has k as text."""

    name: str
    architectures: int
    kendall: Number = None
    spearman: Number = None
    spearman_ci95: tuple[float, float] | None = None
    pearson: Number = None
    regret: dict[str, float] = Field(default_factory=dict)
    top: int
    precision: float


class RankTruth(Record):
    """What scores were held against."""

    source: str
    metric: str
    direction: str
    networks: int


class Rank(Record):
    """How well a supernet ranks networks, and counts of them beside it; `proxies` is empty where nothing is known."""

    space: str
    architectures: int
    score: str
    direction: str
    truth: RankTruth | None = None
    proxies: list[Proxy] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class Quantized(Record):
    """What became of the section `quantize`: the file that is kept, or the best that was tried.

    `agreement` is with the float file, in per cent of images; `bytes` are [float, fewer bits].
    """

    kept: bool
    types: str
    way: str
    integer_layers: int
    layers: int
    left_float: list[str] = Field(default_factory=list)
    bytes: tuple[Number, Number] = (None, None)
    latency_ratio: Annotated[LatencyRatio, BeforeValidator(empty_if_null)] = LatencyRatio()
    agreement: Number = None

    @property
    def shown(self) -> str:
        """The types as people write them."""
        return self.types.upper()


class TaskReport(Record):
    """What the models of a run are for, and the figure that they are chosen by."""

    name: str
    main_metric: str | None = None
    direction: Literal["maximize", "minimize"] | None = None


class StageReport(Record):
    """One finished stage of a run, or a network beside it; `latency_ratio` says how much faster than the baseline."""

    name: str
    seconds: Number = None
    metrics: Annotated[dict[str, Any], BeforeValidator(empty_if_null)] = Field(default_factory=dict)
    latency_ratio: Annotated[LatencyRatio, BeforeValidator(empty_if_null)] = LatencyRatio()

    @cached_property
    def figures(self) -> Metrics:
        """The metrics as a record; what a search takes for a latency, one number, is none."""
        latency = self.metrics.get("latency_ms")
        known = latency if isinstance(latency, dict) else None
        return Metrics.model_validate({**self.metrics, "latency_ms": known})


class Report(Record):
    """report.json, schema 1."""

    schema_: Literal[1] = Field(alias="schema")
    name: str
    recipe_sha256: str | None = None
    seed: int | None = None
    environment: Annotated[dict[str, Any], BeforeValidator(empty_if_null)] = Field(default_factory=dict)
    stages: list[StageReport] = Field(default_factory=list)
    references: list[StageReport] = Field(default_factory=list)
    task: TaskReport | None = None
    baseline: Annotated[Metrics, BeforeValidator(empty_if_null)]
    final: Annotated[Metrics, BeforeValidator(empty_if_null)]
    latency_ratio: Annotated[LatencyRatio, BeforeValidator(empty_if_null)] = LatencyRatio()
    efficiency: Number = None
    rank: Rank | None = None
    quantized: Quantized | None = None

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the run's task, the main one first; of a task that is not installed here, that one alone."""
        from evaluators.tasks import DEFAULT, Metric, tasks  # slow: torch

        if self.task is None:  # version 0.1.0 knew one task
            return DEFAULT.metrics
        name, direction = self.task.main_metric, self.task.direction
        if self.task.name in tasks:
            known = tasks.get(self.task.name).metrics
            return tuple(sorted(known, key=lambda metric: metric.name != name))
        return () if name is None or direction is None else (Metric(name, direction, name, name),)

    @property
    def main(self) -> Metric:
        """The metric that models are chosen by; one that nothing is measured under, for a task without metrics."""
        from evaluators.tasks import UNJUDGED

        return self.metrics[0] if self.metrics else UNJUDGED

    @property
    def alone(self) -> bool:
        """Whether there is one model, which both sets of metrics describe, and nothing was compared."""
        return self.baseline == self.final and self.latency_ratio.median is None

    @property
    def compared(self) -> Metrics:
        """The baseline, without any figure where there is nothing to compare."""
        return Metrics() if self.alone else self.baseline


R = TypeVar("R", bound=Record)


def parse(model: type[R], value: Any, source: str) -> R:
    """Return `value` as a `model`; what does not fit is an `InputError` naming `source` and each key."""
    return validated(model, value, under(f"{source}  "))
