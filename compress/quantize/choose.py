"""Try the ways that suit a model and a processor, and keep the fastest file that is good enough, or the float one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.core.errors import CompressError, InputError
from compress.core.progress import say
from compress.quantize.config import QuantizeConfig
from compress.quantize.float_file import FloatFile
from compress.quantize.images import Images
from compress.quantize.judge import Judgement, drop, judge
from compress.quantize.number_types import types_for
from compress.quantize.sensitivity import Sensitive, least_left, scan
from compress.quantize.writer import Way, dynamic, ranges, static, write
from evaluators.latency.measure import LatencyConfig, interleave, record
from evaluators.latency.operators import time_operators
from evaluators.latency.processor import Processor
from evaluators.tasks import Task

FASTER = 1.05
"""How many times as fast a file of integers has to be: less is not worth another file and its rounding."""
WORTH = 0.1
"""Part of a model's layers that are of a kind, from which on it is worth making integers of that kind."""
INTEGER_KERNELS = (
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "ConvInteger", "QAttention",
)  # fmt: skip


@dataclass
class Candidate:
    """A file, and what is known of it.

    Attributes:
        way: how it was written.
        file: where it lies.
        left: nodes that were left float for the sake of accuracy.
        judgement: on held-out training images.
        ratio: how many times as fast as the float file it is, as `Comparison.ratios` has it.
        kernels: how many nodes of each operator the target runs it by.
        sensitive: the scan that told what to leave.
        problem: why there is no such file, or why it does not run.
    """

    way: Way
    file: Path
    left: list[str] = field(default_factory=list)
    judgement: Judgement | None = None
    ratio: Mapping[str, Any] | None = None
    kernels: Mapping[str, int] = field(default_factory=dict)
    sensitive: list[Sensitive] = field(default_factory=list)
    problem: str | None = None

    @property
    def speed(self) -> float:
        """The median of `ratio`; 0 where it was not timed."""
        return 0.0 if self.ratio is None else float(self.ratio["median"])

    @property
    def integer(self) -> int:
        """Number of convolutions and products that run as integers."""
        return sum(self.kernels.get(name, 0) for name in INTEGER_KERNELS)


@dataclass
class Choice:
    """Everything that a choice among ways needs; `run` makes it.

    Attributes:
        config: the section of the recipe.
        source: the float file, prepared.
        images: to calibrate and to judge on.
        task: of the model.
        processor: of the target.
        latency: how and where files are timed.
        most: of the main metric that may be lost.
        folder: for files.
        reference: the judgement that losses count from; None: the float file's own.
    """

    config: QuantizeConfig
    source: FloatFile
    images: Images
    task: Task
    processor: Processor
    latency: LatencyConfig
    most: float
    folder: Path
    reference: Judgement | None = None
    _made: dict[Way, Candidate] = field(default_factory=dict)
    _ranges: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def run(self) -> tuple[Candidate | None, list[Candidate]]:
        """Return the candidate that is worth keeping, if any, and all that were tried, timed beside the float file.

        Raises:
            InputError: the float file takes no images, or the target cannot time it.
            CompressError: the target failed.
        """
        record(self.source.path, _shortest(self.latency))  # what is wrong with the target or
        _ = self.before  # with the float file is told before any work
        tried = [self.made(way) for way in self.ways()]
        self._time(tried)
        good = [each for each in tried if self._kept(each)]
        best = max((each.speed for each in good), default=FASTER)
        for candidate in sorted(tried, key=lambda each: each.speed, reverse=True):
            if candidate.speed > best and not self.good(candidate.judgement) and candidate.way.types is not None:
                with _noted(candidate):
                    self._repair(candidate)
                good = [each for each in tried if self._kept(each)]
                best = max((each.speed for each in good), default=FASTER)
        return max(good, key=lambda each: each.speed, default=None), tried

    def ways(self) -> list[Way]:
        """Return the ways worth trying."""
        if self.config.types == "fp16":
            return [Way("fp16")]
        return list(self._ways_of_integers())

    def _ways_of_integers(self) -> Iterator[Way]:
        method, channels = self.config.method, self.config.per_channel
        convolutions = self.source.share_of("Conv") >= WORTH
        for types in types_for(self.processor):
            if method == "static" or (method == "auto" and convolutions):
                if convolutions:
                    yield static(types, True, channels, self.config.calibrate)
                yield static(types, False, channels, self.config.calibrate)
            if method == "dynamic" or (method == "auto" and self.source.share_of("MatMul", "Gemm") >= WORTH):
                yield dynamic(types, channels)

    def of_other_weights(self, source: FloatFile, folder: Path) -> Choice:
        """Return the choice for a file of other weights; what it loses is counted from this one's float file."""
        return replace(self, source=source, folder=folder, reference=self.before, _made={}, _ranges={})

    @property
    def static_way(self) -> Way | None:
        """The static way of the most layers, for the types that suit the processor best; None where none is tried."""
        return next((way for way in self.ways() if way.method == "static"), None)

    @cached_property
    def before(self) -> Judgement:
        """The judgement that losses count from."""
        return self.reference or judge(self.source.path, self.images.judged, self.task)

    @cached_property
    def excluded(self) -> list[str]:
        """Nodes that the recipe leaves float."""
        return [layer.node for layer in self.source.matching(self.config.exclude)]

    def good(self, judgement: Judgement | None) -> bool:
        """Return whether what was judged lost no more than may be lost."""
        return judgement is not None and drop(self.task, self.before, judgement) <= self.most + 1e-9

    def _kept(self, candidate: Candidate) -> bool:
        needed = FASTER if candidate.way.types is not None else 1.0
        return candidate.problem is None and candidate.speed > needed and self.good(candidate.judgement)

    def _found(self, way: Way) -> Any:
        """Return the ranges that a static way needs, measured once."""
        if way.method != "static":
            return None
        if way.operators not in self._ranges:
            images = self.images.calibration
            assert images is not None  # the settings try no static way else
            self._ranges[way.operators] = ranges(self.source, way.operators, images, self.config.calibrate)
        return self._ranges[way.operators]

    def made(self, way: Way) -> Candidate:
        """Return a candidate, written and judged, but not timed; a failure is recorded, not raised."""
        if way in self._made:
            return self._made[way]
        say(f"quantizing: {way.name}")
        candidate = self._made[way] = Candidate(way, self.folder / f"{len(self._made)}.onnx")
        with _noted(candidate):
            write(way, self.source, candidate.file, self._found(way), but=self.excluded)
            candidate.kernels = self._kernels(candidate)
            candidate.judgement = judge(candidate.file, self.images.judged, self.task)
        return candidate

    def _kernels(self, candidate: Candidate) -> Mapping[str, int]:
        """Return by how many nodes of each operator the target runs a file; nothing of FP16, if only it runs."""
        if candidate.way.types is None:
            record(candidate.file, _shortest(self.latency))
            return {}
        found = time_operators([candidate.file], self.latency, 0)
        return Counter(each.type for each in found.models[0].operators)

    def _time(self, candidates: Sequence[Candidate]) -> None:
        """Time what runs, in turns with the float file."""
        timed = [each for each in candidates if each.problem is None]
        if timed:
            found = interleave([self.source.path, *(each.file for each in timed)], self.latency.at_most(30, 0.5, 10.0))
            for candidate, ratio in zip(timed, found.ratios, strict=True):
                candidate.ratio = ratio

    def _repair(self, candidate: Candidate) -> None:
        """Leave the most sensitive layers float until the rest is good enough, and time that."""
        way, found = candidate.way, self._found(candidate.way)
        images, excluded = self.images.few, self.excluded
        candidate.sensitive = scan(way, self.source, found, excluded, images, self.task, self.folder)

        def judged(left: list[str]) -> Judgement:
            write(way, self.source, candidate.file, found, but=[*excluded, *left])
            return judge(candidate.file, self.images.judged, self.task)

        left = least_left(candidate.sensitive, judged, self.good)
        if left is None:
            return
        say(f"quantizing: {len(left)} of {len(candidate.sensitive)} nodes stay float")
        candidate.left, candidate.judgement = left, judged(left)
        candidate.kernels = self._kernels(candidate)
        self._time([candidate])


@contextmanager
def _noted(candidate: Candidate) -> Iterator[None]:
    """Note as the problem of a candidate why it cannot be written, run or judged; the others are tried all the same."""
    try:
        yield
    except (CompressError, InputError) as error:
        candidate.problem = str(error)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, AssertionError) as error:
        candidate.problem = f"onnxruntime's quantizer fails on it: {error}"  # it raises anything of odd models


def _shortest(config: LatencyConfig) -> LatencyConfig:
    """Return settings under which a file is tried out rather than timed."""
    return config.model_copy(update={"runs": 3, "seconds": 0.0})
