"""A target whose times are known: every convolution takes a product of two staircases, nothing else takes time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

from compress.latency_model import build, survey
from evaluators.latency.measure import LatencyConfig
from evaluators.latency.operators import Operator, Timed, TimedFile
from evaluators.latency.width_multiple import WidthMultiple

CONSTANT, FACTOR, MS = 0.02, 1.1, 0.05


def stairs(width: int) -> int:
    return math.ceil(width / 16)


def operators(file: Path) -> list[Operator]:
    graph = onnx.load(file).graph
    weights = {each.name: list(each.dims) for each in graph.initializer}
    sizes = {node.name: weights[node.input[1]] for node in graph.node if node.op_type == "Conv"}
    return [Operator(name, "Conv", MS * stairs(out) * stairs(into), []) for name, (out, into, *_) in sizes.items()]


def answer_at_once(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[int]:
    """Let latency models ask the target of the staircase; return how many files it is asked about each time."""
    asked: list[int] = []

    def answer(files: Sequence[Path], config: LatencyConfig, seconds: float) -> Timed:
        asked.append(len(files))
        found = [operators(file) for file in files]
        models = [TimedFile(ms=CONSTANT + FACTOR * sum(each.ms for each in one), operators=one) for one in found]
        return Timed(models=models, clock="cpu", passes=1, waited=0.0, stolen=0.0, contended=False)

    monkeypatch.setattr(survey, "time_operators", answer)
    monkeypatch.setattr(survey, "runtime_of", lambda config: {})
    monkeypatch.setattr(build, "width_multiple", lambda target: WidthMultiple(16, "given"))
    monkeypatch.setenv("COMPRESS_CACHE", str(folder))
    return asked
