"""The metric latency_ms of a search: measured on the target, each network once, or predicted by a table."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from compress.core.batch_norm import recalibrate
from compress.core.config import Config
from compress.core.errors import CompressError
from compress.core.progress import hushed
from compress.core.tensors import flat
from compress.export.quick import export_quickly
from evaluators.candidates.cache import JsonCache, locked
from evaluators.candidates.evaluator import EvaluatorContext, Metrics
from evaluators.latency.agent import environment
from evaluators.latency.measure import LatencyConfig, LatencyRecord, record
from evaluators.latency.table import LatencyTable, sizes_of
from evaluators.tasks import Task
from spaces.architecture import Architecture
from spaces.space import Space

Statistic = Literal["least", "p50", "cpu_p50"]


class QuickLatencyConfig(LatencyConfig):
    """How long a candidate is timed: shorter than a final result."""

    runs: int = Field(30, ge=3, description="timed runs, at least")
    seconds: float = Field(0.5, ge=0, description="seconds of timed runs, at least")
    max_seconds: float = Field(10.0, gt=0, description="seconds of timing, at most")


class SearchLatency(Config):
    """Where the metric latency_ms comes from: ONNX Runtime on the target, or a table of `compress latency-table`."""

    mode: Literal["measured", "table"] = Field("measured", description="time each candidate, or look its blocks up")
    measure: QuickLatencyConfig = Field(
        default_factory=QuickLatencyConfig, description="mode measured: where, how long"
    )
    statistic: Statistic = Field(
        "least",
        description="which of a candidate's times counts: least, the shortest run (with one thread in CPU time, which "
        "a busy machine disturbs least; 3 % below p50 on an idle one), p50 or cpu_p50",
    )
    table: str | None = Field(None, description="mode table: the JSON file; target, threads and batch are the table's")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mode == "table") != (self.table is not None):
            raise ValueError("mode: table needs table: FILE, and only that mode takes one")
        # compared with the defaults, which a resolved recipe spells out
        if self.mode == "table" and (self.measure, self.statistic) != (QuickLatencyConfig(), "least"):
            raise ValueError("mode: table takes neither measure nor statistic; they are those of the table")
        if self.measure.input_size is not None:
            raise ValueError("measure.input_size: the image size is that of the space and the data; leave it out")
        if self.statistic == "cpu_p50" and self.measure.threads > 1:
            raise ValueError("statistic: cpu_p50 is the time of one thread; measure.threads is larger")
        return self

    def make(self, context: EvaluatorContext) -> LatencyMeter:
        """Return the meter; raises InputError for a table that is damaged or of another space or task."""
        if self.table is None:
            return MeasuredLatency(self, context.space, context.directory, context.seed)
        table = LatencyTable.load(self.table)
        table.check(context.space)
        return TabledLatency(table, context.space)


class LatencyMeter(ABC):
    """Gives architectures of one space their latency, in milliseconds per batch."""

    @abstractmethod
    def free(self, arch: Architecture) -> Metrics:
        """Return {"latency_ms": ...} where that costs next to nothing, else {}."""

    def looked_up(self, arch: Architecture) -> Metrics:
        """Return {"latency_ms": ...} where that is read off a file, else {}."""
        return {}

    @abstractmethod
    def measure(self, arch: Architecture) -> float:
        """Return the latency of `arch`, measured if need be.

        Raises:
            CompressError: the network could not be exported, or the target failed.
        """


class TabledLatency(LatencyMeter):
    """Adds up the latencies of an architecture's blocks."""

    def __init__(self, table: LatencyTable, space: Space) -> None:
        self.table, self.space = table, space

    def free(self, arch: Architecture) -> Metrics:
        """Return the predicted latency."""
        return {"latency_ms": self.measure(arch)}

    def looked_up(self, arch: Architecture) -> Metrics:
        """Return the predicted latency."""
        return self.free(arch)

    def measure(self, arch: Architecture) -> float:
        """Return the predicted latency."""
        return self.table.predict(self.space, arch)


class MeasuredLatency(LatencyMeter):
    """Exports and times each architecture once; what is known stays in `latency.jsonl`, for every process.

    Processes that share the folder time one network at a time, so that they do not disturb each other's figures.
    """

    def __init__(
        self, config: SearchLatency, space: Space, directory: Path, seed: int = 0, keep_files: bool = False
    ) -> None:
        self.config, self.space, self.directory, self.seed = config, space, directory, seed
        self.keep_files = keep_files  # for networks that are timed several times
        self.cache = JsonCache(directory / "latency.jsonl")

    def free(self, arch: Architecture) -> Metrics:
        """Return the latency where this network was timed before."""
        known = self.cache.get(self._key(arch))
        return {} if known is None else {"latency_ms": known["latency_ms"]}

    def measure(self, arch: Architecture) -> float:
        """Return the latency of `arch`, timed now where it was not before."""
        return self.free(arch).get("latency_ms") or self._measure(arch, most=1)

    def measure_again(self, arch: Architecture) -> float:
        """Time `arch` once more; the least of its times is its latency from now on."""
        return self._measure(arch, most=len(self.times(arch)) + 1)

    def times(self, arch: Architecture) -> list[float]:
        """Return what every timing of `arch` found so far, in ms."""
        known = self.cache.get(self._key(arch))
        return [] if known is None else list(known["times"])

    def _measure(self, arch: Architecture, most: int) -> float:
        """Time `arch`, unless another process has meanwhile done so for the time number `most`."""
        with self._exported(arch) as file, locked(self.directory / "measuring.lock"):
            times = self.times(arch)
            if len(times) < most:
                with hushed():
                    found = record(file, self.config.measure)
                times.append(statistic(found, self.config.statistic))
                known = {"latency_ms": min(times), "times": times, "record": found.latency_ms}
                about = {"environment": found.environment, "choices": dict(arch)}
                self.cache.put(self._key(arch), known | about)
            return min(times)

    @contextmanager
    def _exported(self, arch: Architecture) -> Iterator[Path]:
        """Yield the ONNX file of `arch`."""
        with ExitStack() as stack:
            if self.keep_files:
                folder = self.directory / "networks"
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            file = folder / f"{self._key(arch)}.onnx"
            if not file.is_file():
                with hushed():
                    export_untrained(self.space, arch, file, self.seed)
            yield file

    def environment(self, arch: Architecture) -> dict[str, Any]:
        """Return the environment that a known network was measured in."""
        found: dict[str, Any] = self.cache.get(self._key(arch))["environment"]
        return found

    def _key(self, arch: Architecture) -> str:
        """Return a digest of everything that a latency depends on, but how long it is timed.

        This machine stands for different machines where hosts share a run, or one goes on with another's.
        """
        task = self.space.task(img_size=self.space.input_size(arch))
        where = self.config.measure.model_dump(mode="json", include=set(_WHERE))
        if self.config.measure.target.here:
            where["machine"] = _this_machine()
        about: dict[str, Any] = {"task": sizes_of(task), "statistic": self.config.statistic, **where}
        about |= self.space.to_dict(self.space.canonical(arch))
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


_WHERE = ("target", "threads", "batch", "provider", "optimization")


@functools.cache
def _this_machine() -> dict[str, Any]:
    """Return what makes two machines take differently long: processor and runtime."""
    found = environment()
    return {name: found[name] for name in ("cpu", "machine", "vector_extension", "onnxruntime")}


def statistic(found: LatencyRecord, name: Statistic) -> float:
    """Return the time of a record that counts, in ms; raises CompressError where the target has no CPU clock."""
    if name == "least":
        cpu = found.cpu_min if found.threads == 1 and found.provider.startswith("CPU") else None
        return cpu or found.min  # a coarse clock may stand still while a small network runs
    value = found.p50 if name == "p50" else found.cpu_p50
    if value is None:
        raise CompressError("latency: the target has no clock for CPU time; choose another statistic")
    return value


def export_untrained(space: Space, arch: Architecture, path: Path, seed: int = 0) -> Path:
    """Write `arch` with initial weights to the ONNX file `path` and return it.

    Of a detector, what its heads give: how long suppression takes hangs on what was learnt.
    """
    task: Task = space.task(img_size=space.input_size(arch))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = space.build(arch, task).eval()
        images = torch.randn(2, task.in_chans, task.img_size, task.img_size)
    _settle(model, images, task)
    export_quickly(model, task.arguments(images), path, task, post_processing=task.gives_tensor)
    return path


def _settle(model: nn.Module, images: torch.Tensor, task: Task) -> None:
    """Keep the values of a deep untrained network finite: its batch norms do nothing before any training."""
    with torch.no_grad():
        finite = bool(torch.isfinite(flat(task.for_file(model, task.gives_tensor)(images.clone()))).all())
    if not finite:
        recalibrate(model, [images], 1)
