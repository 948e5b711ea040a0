"""Latency of ONNX files with ONNX Runtime: how long and where they are timed, and what is written down of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from compress.core.config import Config
from compress.core.errors import CompressError, InputError
from compress.core.problems import validated
from compress.core.progress import say
from evaluators.latency.ask import ask
from evaluators.latency.targets import Target
from evaluators.latency.targets.local import LocalTarget

METRICS = ("p10", "p50", "p90", "p99", "min", "cpu_p50", "runs", "threads", "batch", "provider", "contended")


class FedInput(Config):
    """What an input of an ONNX file is given to be timed."""

    shape: list[PositiveInt] | None = Field(None, description="sizes after the batch, or all; null: as in the file")
    low: float | None = Field(None, description="least value; null: 0, or normal noise without high")
    high: float | None = Field(None, description="largest value; of integers the first that is too large")


class LatencyConfig(Config):
    """How long and where an ONNX file is timed."""

    target: Target = Field(
        LocalTarget(),
        description="local, {command: 'ssh host python3 -'}, {ray: LABEL} of a node, or the `kind` of another",
    )
    threads: int = Field(1, ge=1, le=256, description="threads within an operator; the same for every candidate")
    batch: int = Field(1, ge=1, description="images per run, where the file leaves it open")
    input_size: tuple[PositiveInt, ...] | None = Field(
        None, description="sizes after the batch, such as channels, height, width, where the file leaves them open"
    )
    inputs: dict[str, FedInput] = Field(
        {}, description="by name: sizes that the file leaves open and ranges of values, where the file does not tell"
    )
    runs: int = Field(100, ge=3, description="timed runs, at least")
    seconds: float = Field(3.0, ge=0, description="seconds of timed runs, at least")
    max_seconds: float = Field(60.0, gt=0, description="seconds of timing or of comparing, at most")
    precision: float = Field(0.04, gt=0, description="a comparison stops once its 95 % interval is this narrow")
    provider: str = Field("CPUExecutionProvider", description="ONNX Runtime's execution provider")
    optimization: Literal["disable", "basic", "extended", "all"] = Field(
        "all", description="ONNX Runtime's graph optimisation level"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_seconds < self.seconds:
            raise ValueError(f"max_seconds must be at least seconds ({self.seconds:g}); got {self.max_seconds:g}")
        return self

    def sized(self, input_size: tuple[int, ...]) -> Self:
        """Return the settings with this `input_size` for files that leave sizes open, unless they have one."""
        return self if self.input_size is not None else self.model_copy(update={"input_size": input_size})

    def at_most(self, runs: int, seconds: float, max_seconds: float) -> Self:
        """Return the settings of a final measurement, shortened for one of many."""
        limits = {"runs": runs, "seconds": seconds, "max_seconds": max_seconds}
        return self.model_copy(update={name: min(getattr(self, name), most) for name, most in limits.items()})


class LatencyRecord(Config):
    """One measurement with all that its meaning depends on; times in ms per batch."""

    p10: float
    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    mean: float
    std: float
    cv: float
    cpu_min: float | None
    cpu_p50: float | None
    cpu_p90: float | None
    contention: float | None
    waited: float | None
    stolen: float | None
    contended: bool
    runs: int
    threads: int
    batch: int
    shape: list[int]
    dtype: str
    optimization: str
    provider: str
    samples: list[float]
    environment: dict[str, Any]

    @property
    def latency_ms(self) -> dict[str, Any]:
        """The part that goes into METRICS of report.json."""
        return {key: getattr(self, key) for key in METRICS}


@dataclass(frozen=True)
class Comparison:
    """Several models timed in turns: the record of each, and how many times as long the first takes as each other one.

    A ratio is {"median", "ci95": [lo, hi], "blocks", "clock"}: over the ratios of neighbouring blocks of about 10 runs,
    with a bootstrap interval over sessions and the blocks within them; of wall times, or of CPU times ("cpu") where
    the machine was busy and one thread runs, since other work moves them far less.
    """

    records: list[LatencyRecord]
    ratios: list[dict[str, Any]]


def reach(config: LatencyConfig) -> None:
    """Try the target out before anything is made for it; this machine with its processor needs no trial.

    Raises:
        InputError: its command cannot be started, or it has not the provider.
        CompressError: it failed, or its Python lacks numpy or onnxruntime.
    """
    if not config.target.here or config.provider != LatencyConfig.model_fields["provider"].default:
        ask(config.target, {"action": "environment", "provider": config.provider})


def record(onnx_path: Path | str, config: LatencyConfig) -> LatencyRecord:
    """Time one ONNX file after a warm-up; `samples` holds up to 1000 of its runs in order of time.

    `contended` is set where the machine was busy with other work: this one `waited` for a processor a tenth of the time
    (what Linux tells of the threads in its queues and, with one thread, the time in which it had no processor), the
    host of a virtual machine took (`stolen`) as much, or p90 is 1.5 times p50. Rank by `cpu_p50` or `min` then.
    `contention` is the runs' wall time over their CPU time. With several threads CPU time is the whole process'.

    Raises:
        InputError: the file is missing, corrupt, or does not take the asked batch, size or provider.
        CompressError: the target failed, or its answer lacks a field.
    """
    path = Path(onnx_path)
    threads = f"{config.threads} thread{'s' if config.threads > 1 else ''}"
    say(f"latency of {path.name}: {threads}" + (f", at least {config.seconds:g} s" if config.seconds else ""))
    answer = ask(config.target, _request("measure", config), [path])
    return _record(answer["result"], answer, path)


def _record(found: dict[str, Any], answer: dict[str, Any], path: Path) -> LatencyRecord:
    try:
        return validated(LatencyRecord, {**found, "environment": answer["environment"]})
    except InputError as error:
        problems = "; ".join(error.problems)
        raise CompressError(f"the latency target's answer for {path.name} is incomplete: {problems}") from error


def measure(onnx_path: Path | str, config: LatencyConfig) -> dict[str, Any]:
    """Return METRICS.latency_ms of `record`: percentiles in ms per batch, CPU time, runs, threads, contention."""
    return record(onnx_path, config).latency_ms


def interleave(onnx_paths: Sequence[Path | str], config: LatencyConfig) -> Comparison:
    """Time ONNX files in one process, in random order in blocks of about 10 runs; records and ratios agree so.

    Stops once each has its `runs` and `seconds` and every interval is as narrow as `precision` asks, at the latest
    after `max_seconds` for each ratio. Raises as `record` does.
    """
    paths = [Path(each) for each in onnx_paths]
    say(f"timing {len(paths)} files in turns: up to {config.max_seconds * max(1, len(paths) - 1):g} s")
    answer = ask(config.target, _request("compare", config), paths)
    result = answer["result"]
    records = [_record(found, answer, path) for found, path in zip(result["records"], paths, strict=True)]
    return Comparison(records, result["ratios"])


def compare(onnx_a: Path | str, onnx_b: Path | str, config: LatencyConfig) -> dict[str, Any]:
    """Return how many times as long `onnx_a` takes as `onnx_b`: the ratio of a `Comparison`; raises like `record`."""
    return interleave([onnx_a, onnx_b], config).ratios[0]


def _request(action: str, config: LatencyConfig) -> dict[str, Any]:
    return {"action": action, "seed": 0, **config.model_dump(include={*LatencyConfig.model_fields} - {"target"})}
