"""Measure ONNX models where they will run: needs Python 3.8, numpy and onnxruntime only, nothing of this project.

`evaluators.latency.ask` feeds the modules of this package to `python3 -` (here, or over ssh or adb) as one program,
followed by the models in base64 and a call of `main` with a JSON request. The answer is one JSON line on standard
output. Nothing is installed on the target.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.latency.agent.feed import BadInput, check_provider, first_line
from evaluators.latency.agent.operators import operators
from evaluators.latency.agent.timing import compare, measure

if TYPE_CHECKING:
    from evaluators.latency.agent.feed import Request

MODULES = ("feed", "clock", "timing", "operators")
"""In the order in which they import each other; this one comes last."""

# ---- the machine

FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Names that Linux has for what decides how fast integers and short floats are multiplied, on x86 and on ARM."""


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


def features() -> list[str]:
    """Return which of `FEATURES` the processor has; none where the system does not tell."""
    info = cpu_info()
    there = set(info.get("flags", info.get("Features", "")).split())
    return [name for name in FEATURES if name in there]


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

MEASUREMENTS = {
    "measure": lambda paths, request: measure(paths[0], request),
    "compare": compare,
    "operators": operators,
}

_received: dict[str, list[str]] = {}


def part(name: str, text: str) -> None:
    """Take one piece (base64) of the file `name`; `evaluators.latency.ask` writes these calls before `main`'s."""
    _received.setdefault(name, []).append(text)


def answer(request: Request) -> dict[str, Any]:
    """Return the result of one request: action "cpu", "environment", or a key of `MEASUREMENTS`."""
    if request["action"] == "cpu":
        return {"vector_extension": vector_extension(), "machine": platform.machine(), "features": features()}
    import numpy
    import onnxruntime  # noqa: F401 (missing libraries are found before any work)

    if "provider" in request:
        check_provider(request["provider"])
    if request["action"] == "environment":
        return {"environment": environment()}
    with tempfile.TemporaryDirectory() as folder:
        for name, parts in _received.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            with (Path(folder) / name).open("wb") as file:
                file.writelines(base64.b64decode(each) for each in parts)
        _received.clear()
        paths = [Path(folder) / each for each in request["models"]]
        numpy.seterr(all="ignore")
        gc.collect()
        gc.disable()
        result = MEASUREMENTS[request["action"]](paths, request)
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
    except Exception as error:  # the caller is told of everything in one line
        reply = {"error": f"{type(error).__name__}: {first_line(error)}"}
    print(json.dumps({"agent": 1, **reply}), flush=True)
