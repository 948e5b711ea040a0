"""Measure ONNX models where they will run: one file that needs Python 3.8, numpy and onnxruntime only.

`evaluators.targets` feeds this source to `python3 -` (here, or over ssh or adb), followed by the models in base64 and a
call of `main` with a JSON request. The answer is one JSON line on standard output. Nothing is installed on the target.
"""

from __future__ import annotations

import base64
import gc
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Request = dict[str, Any]
    Clock = Callable[[], int]
    Round = tuple[Any, list[bool]]

WARMUP_RUNS, WARMUP_SECONDS = 10, 0.5
STEADY_CV, QUIET_CONTENTION = 0.05, 1.1
BLOCK_RUNS, BLOCK_SECONDS = 10, (0.004, 0.3)
ROUND_PAIRS, ROUND_SECONDS, LEAST_ROUNDS = 4, 0.7, 8
SAMPLES_KEPT, RESAMPLES = 1000, 1000
LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class BadInput(Exception):
    """What was asked for cannot be measured: the model or the request is wrong."""


# ---- sessions and what they are fed


def open_session(path: Path, request: Request) -> Any:
    """Return an inference session on the model at `path`, with threads and optimisation level pinned.

    With several threads, workers sleep between operators instead of spinning: a spinning worker of one live session
    slows the other one, and on a shared machine its own (specs/onnx_latency.md, 1.3).
    """
    import onnxruntime

    provider = request["provider"]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise BadInput(f"provider {provider!r} is not in this onnxruntime; allowed: {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[request["optimization"]])
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:
        raise BadInput(
            f"{Path(path).name}: onnxruntime {onnxruntime.__version__} cannot load it: {first_line(error)}"
        ) from error
    if session.get_providers()[0] != provider:
        raise BadInput(f"provider {provider!r} did not start; onnxruntime fell back to {session.get_providers()[0]}")
    return session


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def make_feed(session: Any, batch: int, input_size: Sequence[int] | None, seed: int = 0) -> dict[str, Any]:
    """Return {input name: array} of the model's own shapes; `batch` and `input_size` (C, H, W) fill what is dynamic."""
    return {
        each.name: make_input(each.name, each.shape, each.type, batch, input_size, seed)
        for each in session.get_inputs()
    }


def make_input(
    name: str, shape: Sequence[Any], kind: str, batch: int, input_size: Sequence[int] | None, seed: int
) -> Any:
    """Return one input: images as a normalised data set has them (smooth areas, edges, noise), never constant."""
    import numpy as np

    shape = list(shape)
    if shape and not isinstance(shape[0], int):
        shape[0] = batch
    elif shape and shape[0] != batch:
        raise BadInput(f"input {name!r} has a fixed batch of {shape[0]}; got batch {batch}")
    if input_size and len(shape) == 4:
        shape[1:] = [shape[k] if isinstance(shape[k], int) else input_size[k - 1] for k in (1, 2, 3)]
    if not all(isinstance(each, int) for each in shape):
        raise BadInput(f"input {name!r} has dynamic sizes {shape}; give input_size as channels, height, width")
    if kind not in DTYPES:
        raise BadInput(f"input {name!r} has type {kind}; allowed: {', '.join(DTYPES)}")
    generator = np.random.default_rng(seed)
    values: Any = generator.standard_normal(shape)
    if len(shape) == 4:
        height, width = shape[2:]
        coarse = generator.standard_normal((*shape[:2], -(-height // 8), -(-width // 8)))
        smooth = coarse.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
        values = 0.9 * smooth + 0.4 * values
    if DTYPES[kind] in ("uint8", "int8"):
        values = np.clip(values * 40 + (128 if DTYPES[kind] == "uint8" else 0), -128, 255)
    elif DTYPES[kind] in ("int32", "int64", "bool"):
        values = values > 0
    return values.astype(DTYPES[kind])


# ---- clocks


def cpu_clock(threads: int) -> Clock | None:
    """Return a nanosecond clock of CPU time, of this thread or (with several) all; None where it is too coarse."""
    if not hasattr(time, "thread_time_ns"):
        return None
    clock, info = (time.thread_time_ns, "thread_time") if threads == 1 else (time.process_time_ns, "process_time")
    return clock if time.get_clock_info(info).resolution <= 1e-5 else None  # type: ignore[arg-type]


def time_runs(
    session: Any, feed: dict[str, Any], clock: Clock | None, runs: int, seconds: float, max_seconds: float
) -> tuple[Any, Any]:
    """Return wall and CPU times (arrays, ms): `runs` or `seconds`, whichever is later, up to `max_seconds`."""
    import numpy as np

    clock = clock or (lambda: 0)
    wall, cpu = [], []
    started = time.perf_counter()
    while True:
        before_wall, before_cpu = time.perf_counter_ns(), clock()
        session.run(None, feed)
        cpu.append(clock() - before_cpu)
        wall.append(time.perf_counter_ns() - before_wall)
        elapsed = time.perf_counter() - started
        if (len(wall) >= runs and elapsed >= seconds) or elapsed >= max_seconds:
            return np.array(wall) / 1e6, np.array(cpu) / 1e6


def warm_up(session: Any, feed: dict[str, Any], runs: int, seconds: float) -> float:
    """Run at least `runs` times and `seconds`; return the median wall time of the later half, in ms."""
    import numpy as np

    wall, _ = time_runs(session, feed, None, runs, seconds, math.inf)
    return float(np.median(wall[len(wall) // 2 :]))


def is_contended(cv: float, contention: float | None) -> bool:
    """Return whether other work disturbed the wall clock: CV from 5 % and wall from 1.1 x CPU (where that is known)."""
    return cv >= STEADY_CV and (contention is None or contention >= QUIET_CONTENTION)


# ---- the two measurements


def measure(path: Path, request: Request) -> dict[str, Any]:
    """Return the distribution of a model's latency with every field of specs/onnx_latency.md 1.1, in ms per batch."""
    import numpy as np

    session = open_session(path, request)
    feed = make_feed(session, request["batch"], request["input_size"])
    clock = cpu_clock(request["threads"])
    warm_up(session, feed, WARMUP_RUNS, WARMUP_SECONDS)
    wall, cpu = time_runs(session, feed, clock, request["runs"], request["seconds"], request["max_seconds"])
    quantiles = {f"p{q}": float(np.percentile(wall, q)) for q in (10, 50, 90, 95, 99)}
    cv = float(wall.std() / wall.mean())
    cpu_p50, cpu_p90 = (float(np.percentile(cpu, q)) for q in (50, 90)) if clock else (None, None)
    cpu_min = float(cpu.min()) if clock else None
    contention = quantiles["p50"] / cpu_p50 if cpu_p50 and request["threads"] == 1 else None
    first = session.get_inputs()[0]
    return {
        **quantiles,
        "min": float(wall.min()),
        "mean": float(wall.mean()),
        "std": float(wall.std()),
        "cv": cv,
        "cpu_min": cpu_min,
        "cpu_p50": cpu_p50,
        "cpu_p90": cpu_p90,
        "contention": contention,
        "contended": is_contended(cv, contention),
        "runs": len(wall),
        "threads": request["threads"],
        "batch": request["batch"],
        "shape": list(feed[first.name].shape),
        "dtype": str(feed[first.name].dtype),
        "optimization": request["optimization"],
        "provider": request["provider"],
        "samples": [float(each) for each in wall[:: -(-len(wall) // SAMPLES_KEPT)]],
    }


def compare(paths: Sequence[Path], request: Request) -> dict[str, Any]:
    """Return how many times slower model 0 is than model 1: both run in turn, in random order, in blocks of about 10.

    A pair of neighbouring blocks gives one ratio of medians, so that slow drifts of the machine cancel. After 4 pairs
    and 0.7 s both sessions are built and warmed anew, in random order: a session's place in memory shifts its speed by
    up to a per cent.
    """
    order = random.Random(request["seed"])
    clock = cpu_clock(request["threads"]) if request["threads"] == 1 and request["provider"].startswith("CPU") else None
    rounds: list[Round] = []
    started = time.perf_counter()
    while True:
        rounds.append(one_round(paths, request, clock, order, started))
        result = summarise(rounds, clock is not None, request["seed"])
        low, high = result["ci95"]
        narrow = len(rounds) >= LEAST_ROUNDS and high - low <= request["precision"] * result["median"]
        enough = narrow and time.perf_counter() - started >= request["seconds"]
        if enough or time.perf_counter() - started >= request["max_seconds"]:
            return result


def one_round(
    paths: Sequence[Path], request: Request, clock: Clock | None, order: random.Random, started: float
) -> Round:
    """Return block medians (pairs, 2 models, 2 clocks) in ms on fresh sessions, and which model was contended."""
    import numpy as np

    turns = order.sample((0, 1), 2)
    sessions = {index: open_session(paths[index], request) for index in turns}
    feeds = {index: make_feed(sessions[index], request["batch"], request["input_size"]) for index in turns}
    once = max(warm_up(sessions[index], feeds[index], 3, WARMUP_SECONDS / 4) for index in turns) / 1e3
    runs = max(BLOCK_RUNS, math.ceil(BLOCK_SECONDS[0] / once))
    runs = max(3, min(runs, int(BLOCK_SECONDS[1] / once)))
    medians: list[Any] = []
    raw: tuple[list[Any], list[Any]] = ([], [])
    began = time.perf_counter()
    while len(medians) < ROUND_PAIRS or time.perf_counter() - began < ROUND_SECONDS:
        pair = np.zeros((2, 2))
        for index in order.sample((0, 1), 2):
            wall, cpu = time_runs(sessions[index], feeds[index], clock, runs, 0, math.inf)
            pair[index] = np.median(wall), np.median(cpu)
            raw[index].append((wall, cpu))
        medians.append(pair)
        if time.perf_counter() - started >= request["max_seconds"]:
            break
    return np.array(medians), [disturbed(each, clock) for each in raw]


def disturbed(blocks: list[Any], clock: Clock | None) -> bool:
    """Return whether the wall times of a model's blocks count as contended."""
    import numpy as np

    wall, cpu = np.concatenate([each[0] for each in blocks]), np.concatenate([each[1] for each in blocks])
    return is_contended(float(wall.std() / wall.mean()), float(np.median(wall) / np.median(cpu)) if clock else None)


def summarise(rounds: list[Round], cpu_known: bool, seed: int) -> dict[str, Any]:
    """Return the median ratio over blocks and its 95 % interval: rounds are resampled, then pairs within them.

    The interval is stretched as Student's t is wider than the normal distribution, and as a bootstrap of few rounds
    is too narrow: sqrt(n / (n - 1)) (1 + 1.4 / (n - 1)) for n rounds.
    """
    import numpy as np

    contended = any(any(flags) for _, flags in rounds)
    clock = "cpu" if contended and cpu_known else "wall"
    column = int(clock == "cpu")
    ratios = [medians[:, 0, column] / medians[:, 1, column] for medians, _ in rounds]
    generator = np.random.default_rng(seed)
    sizes = np.array([len(each) for each in ratios])
    starts, everything = np.cumsum(sizes) - sizes, np.concatenate(ratios)
    chosen = generator.integers(len(ratios), size=(RESAMPLES, len(ratios), 1))
    within = generator.random((RESAMPLES, len(ratios), round(sizes.mean()))) * sizes[chosen]
    drawn = np.median(everything[starts[chosen] + within.astype(int)].reshape(RESAMPLES, -1), axis=1)
    median, freedom = np.median(everything), max(len(rounds) - 1, 1)
    stretch = (1 + 1 / freedom) ** 0.5 * (1 + 1.4 / freedom)
    low, high = median + stretch * (np.percentile(drawn, [2.5, 97.5]) - median)
    return {
        "median": float(median),
        "ci95": [float(low), float(high)],
        "blocks": len(everything),
        "clock": clock,
        "contended": contended,
    }


# ---- the machine


def cpu_info() -> dict[str, str]:
    """Return {key: value} of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = [line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in lines}


def vector_extension() -> str | None:
    """Return "avx512", "avx2" or, where neither is known to be there, None."""
    flags = cpu_info().get("flags", "").split()
    return "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else None


def environment() -> dict[str, Any]:
    """Return what a latency depends on: processor, cores, runtime version, system load."""
    import onnxruntime

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_info().get("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "vector_extension": vector_extension(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


# ---- the conversation

_received: dict[str, list[str]] = {}


def part(name: str, text: str) -> None:
    """Take one piece (base64) of the file called `name`; `evaluators.targets` writes these calls before `main`'s."""
    _received.setdefault(name, []).append(text)


def answer(request: Request) -> dict[str, Any]:
    """Return the result of one request: action "cpu", "measure" or "compare"."""
    if request["action"] == "cpu":
        return {"vector_extension": vector_extension()}
    import numpy
    import onnxruntime  # noqa: F401 (missing libraries are found before any work)

    with tempfile.TemporaryDirectory() as folder:
        for name, parts in _received.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            with (Path(folder) / name).open("wb") as file:
                file.writelines(base64.b64decode(each) for each in parts)
        _received.clear()
        paths = [Path(folder) / each for each in request["models"]]
        numpy.seterr(all="ignore")
        gc.collect()
        gc.disable()
        result = measure(paths[0], request) if request["action"] == "measure" else compare(paths, request)
    return {"result": result, "environment": environment()}


def main(text: str) -> None:
    """Answer the JSON request `text` with one JSON line on standard output."""
    reply: dict[str, Any]
    try:
        reply = answer(json.loads(text))
    except BadInput as error:
        reply = {"error": str(error), "input": True}
    except ImportError as error:
        reply = {"error": f"{sys.executable} (Python {platform.python_version()}) lacks {error.name}: {error}"}
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {first_line(error)}"}
    print(json.dumps({"agent": 1, **reply}), flush=True)
