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

WARMUP_RUNS, WARMUP_SECONDS = 10, 0.5
STEADY_CV, QUIET_CONTENTION = 0.05, 1.1
BLOCK_RUNS, BLOCK_SECONDS = 10, (0.004, 0.3)
ROUND_PAIRS, ROUND_SECONDS, LEAST_ROUNDS = 6, 1.5, 4
SAMPLES_KEPT = 1000
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


def open_session(path, request):
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


def first_line(error):
    """Return the first line of an exception's message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def make_feed(session, batch, input_size, seed=0):
    """Return {input name: array}: the model's own shapes, dynamic batch set to `batch`, dynamic C, H, W to `input_size`."""
    return {each.name: make_input(each.name, each.shape, each.type, batch, input_size, seed) for each in session.get_inputs()}


def make_input(name, shape, kind, batch, input_size, seed):
    """Return one input: images as a normalised data set has them (smooth areas, edges, noise), never constant."""
    import numpy as np

    shape = list(shape)
    if shape and not isinstance(shape[0], int):
        shape[0] = batch
    elif shape and shape[0] != batch:
        raise BadInput(f"input {name!r} has a fixed batch of {shape[0]}; got batch {batch}")
    if input_size and len(shape) == 4:
        shape[1:] = [given if isinstance(given, int) else wanted for given, wanted in zip(shape[1:], input_size)]  # noqa: B905 (Python 3.8)
    if not all(isinstance(each, int) for each in shape):
        raise BadInput(f"input {name!r} has dynamic sizes {shape}; give input_size as channels, height, width")
    if kind not in DTYPES:
        raise BadInput(f"input {name!r} has type {kind}; allowed: {', '.join(DTYPES)}")
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape)
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


def cpu_clock(threads):
    """Return a nanosecond clock of CPU time spent: of this thread, or of all with several; None where it is too coarse."""
    name = "thread_time" if threads == 1 else "process_time"
    if not hasattr(time, name) or time.get_clock_info(name).resolution > 1e-5:
        return None
    return getattr(time, name + "_ns")


def time_runs(session, feed, clock, runs, seconds, max_seconds):
    """Return wall and CPU times (arrays, ms): at least `runs` and `seconds`, whichever is later, up to `max_seconds`."""
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


def warm_up(session, feed, seconds=WARMUP_SECONDS):
    """Run at least 10 times and `seconds`; return the median wall time of the later half, in ms."""
    import numpy as np

    wall, _ = time_runs(session, feed, None, WARMUP_RUNS, seconds, math.inf)
    return float(np.median(wall[len(wall) // 2 :]))


def is_contended(cv, contention):
    """Return whether other work disturbed the wall clock: CV above 5 % and wall above 1.1 x CPU (where that is known)."""
    return cv >= STEADY_CV and (contention is None or contention >= QUIET_CONTENTION)


# ---- the two measurements


def measure(path, request):
    """Return the distribution of one model's latency, every field of specs/onnx_latency.md 1.1; times in ms per batch."""
    import numpy as np

    session = open_session(path, request)
    feed = make_feed(session, request["batch"], request["input_size"])
    clock = cpu_clock(request["threads"])
    warm_up(session, feed)
    wall, cpu = time_runs(session, feed, clock, request["runs"], request["seconds"], request["max_seconds"])
    quantiles = {f"p{q}": float(np.percentile(wall, q)) for q in (10, 50, 90, 95, 99)}
    cv = float(wall.std() / wall.mean())
    cpu_p50, cpu_p90 = (float(np.percentile(cpu, q)) for q in (50, 90)) if clock else (None, None)
    contention = quantiles["p50"] / cpu_p50 if cpu_p50 and request["threads"] == 1 else None
    first = session.get_inputs()[0]
    return {
        **quantiles,
        "min": float(wall.min()),
        "mean": float(wall.mean()),
        "std": float(wall.std()),
        "cv": cv,
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


def compare(paths, request):
    """Return how many times slower model 0 is than model 1: both run in turn, in random order, in blocks of about 10.

    A pair of neighbouring blocks gives one ratio of medians, so that slow drifts of the machine cancel. After 6 pairs
    and 1.5 s both sessions are built anew, in random order: where a session's memory lies shifts its speed by a few per mille.
    """
    order = random.Random(request["seed"])
    clock = cpu_clock(request["threads"]) if request["threads"] == 1 and request["provider"].startswith("CPU") else None
    rounds, started = [], time.perf_counter()
    while True:
        rounds.append(one_round(paths, request, clock, order, started))
        result = summarise(rounds, clock is not None, request["seed"])
        low, high = result["ci95"]
        narrow = len(rounds) >= LEAST_ROUNDS and high - low <= request["precision"] * result["median"]
        enough = narrow and time.perf_counter() - started >= request["seconds"]
        if enough or time.perf_counter() - started >= request["max_seconds"]:
            return result


def one_round(paths, request, clock, order, started):
    """Return an array (pairs, 2 models, 2 clocks) of block medians in ms, and the runs' contention, on fresh sessions."""
    import numpy as np

    sessions = {index: open_session(paths[index], request) for index in order.sample((0, 1), 2)}
    feeds = {index: make_feed(sessions[index], request["batch"], request["input_size"]) for index in (0, 1)}
    once = max(warm_up(sessions[index], feeds[index], WARMUP_SECONDS / 2) for index in (0, 1)) / 1e3
    runs = max(BLOCK_RUNS, math.ceil(BLOCK_SECONDS[0] / once))
    runs = max(3, min(runs, int(BLOCK_SECONDS[1] / once)))
    medians, raw, began = [], ([], []), time.perf_counter()
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


def disturbed(blocks, clock):
    """Return whether the wall times of a model's blocks count as contended."""
    import numpy as np

    wall, cpu = np.concatenate([each[0] for each in blocks]), np.concatenate([each[1] for each in blocks])
    return is_contended(wall.std() / wall.mean(), np.median(wall) / np.median(cpu) if clock else None)


def summarise(rounds, cpu_known, seed):
    """Return the median ratio over blocks and its 95 % interval: rounds are resampled, then pairs within them."""
    import numpy as np

    contended = any(any(flags) for _, flags in rounds)
    clock = "cpu" if contended and cpu_known else "wall"
    column = int(clock == "cpu")
    ratios = [medians[:, 0, column] / medians[:, 1, column] for medians, _ in rounds]
    generator = np.random.default_rng(seed)
    drawn = [
        np.median(np.concatenate([generator.choice(ratios[k], len(ratios[k])) for k in generator.integers(len(ratios), size=len(ratios))]))
        for _ in range(1000)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    everything = np.concatenate(ratios)
    return {
        "median": float(np.median(everything)),
        "ci95": [float(low), float(high)],
        "blocks": len(everything),
        "clock": clock,
        "contended": contended,
    }


# ---- the machine


def cpu_info():
    """Return {key: value} of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = [line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in lines}


def vector_extension():
    """Return "avx512", "avx2" or, where neither is known to be there, None."""
    flags = cpu_info().get("flags", "").split()
    return "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else None


def environment():
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

_received = {}


def part(name, text):
    """Take one piece (base64) of the file called `name`; `evaluators.targets` writes these calls before that of `main`."""
    _received.setdefault(name, []).append(text)


def answer(request):
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


def main(text):
    """Answer the JSON request `text` with one JSON line on standard output."""
    try:
        reply = answer(json.loads(text))
    except BadInput as error:
        reply = {"error": str(error), "input": True}
    except ImportError as error:
        reply = {"error": f"Python {platform.python_version()} at {sys.executable} there cannot import {error.name}: {error}"}
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {first_line(error)}"}
    print(json.dumps({"agent": 1, **reply}), flush=True)
