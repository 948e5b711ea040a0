"""What every operator of some ONNX files takes on a target, and each file as a whole, all in one session."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.problems import validated
from evaluators.latency.ask import ask
from evaluators.latency.measure import LatencyConfig


class Operator(NamedTuple):
    """An operator of the optimised graph: ONNX Runtime's name and type of it, and its time in ms."""

    name: str
    type: str
    ms: float
    shapes: list[list[int]]


class TimedFile(Config):
    """A file: what it takes as a whole (ms per batch, without the profile) and its operators in order."""

    ms: float
    operators: list[Operator]


class Timed(Config):
    """Files that were timed in turns, on which clock, and what disturbed them (see `agent.clock`)."""

    models: list[TimedFile]
    clock: str
    passes: int
    waited: float | None
    stolen: float | None
    contended: bool
    environment: dict[str, Any] = Field(default_factory=dict)


def time_operators(paths: Sequence[Path], config: LatencyConfig, seconds: float) -> Timed:
    """Time ONNX files and their operators, all in turns in one process of the target.

    Args:
        paths: the files.
        config: where and with what settings; how long its measurements take does not matter here.
        seconds: how much of the target's processor time the turns take, twice: with the profile and without.

    Raises:
        InputError: the provider runs no single operators, or a file or setting does not suit the target.
        CompressError: the target failed.
    """
    check_provider(config)
    settings = config.model_dump(include={"threads", "batch", "input_size", "inputs", "provider", "optimization"})
    answer = ask(config.target, {"action": "operators", "seed": 0, "seconds": seconds, **settings}, paths)
    return validated(Timed, {**answer["result"], "environment": answer["environment"]})


def check_provider(config: LatencyConfig) -> None:
    """Raise InputError unless the provider runs operators one after another, as the profile has them."""
    if config.provider != "CPUExecutionProvider":
        raise InputError(
            f"latency.provider: what single layers take is known of CPUExecutionProvider only; got {config.provider!r}"
        )


def runtime_of(config: LatencyConfig) -> dict[str, Any]:
    """Return what makes two targets take differently long: processor and runtime."""
    found = ask(config.target, {"action": "environment"})["environment"]
    return {name: found[name] for name in ("cpu", "machine", "vector_extension", "onnxruntime")}
