"""A target whose times are counts: `{command: "python steady_target.py"}` takes equally long for equal files, always.

It runs the agent that it is sent, with ONNX Runtime and its real operators, but reads their shapes in place of a clock:
what a run measured can be compared with what another run measured.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

AGENT = "evaluators.latency.agent"


def steady(agent: Any, timing: Any, operators: Any) -> None:
    """Let the agent's modules count instead of timing."""
    open_ready, read, known = timing.ready, operators.read, {}

    def counted(path: Path, request: dict[str, Any]) -> list[Any]:
        """Return the operators of a model, in ms by the sizes of what they read and write."""
        if path not in known:
            with tempfile.TemporaryDirectory() as folder:
                session, feed = open_ready(path, request, str(Path(folder) / "profile"))
                session.run(None, feed)
                found = read(Path(session.end_profiling()), [False, True])
            known[path] = [
                [name, kind, 1e-3 + 1e-6 * sum(map(numel, shapes)), shapes] for name, kind, _, shapes in found
            ]
        return known[path]

    class Session:
        def __init__(self, path: Path, request: dict[str, Any]) -> None:
            self.ms = sum(each[2] for each in counted(path, request))

    def ready(path: Path, request: dict[str, Any], profile: str | None = None) -> tuple[Any, dict[str, Any]]:
        return Session(path, request), open_ready(path, request)[1]

    def time_runs(session: Session, feed: Any, clock: Any, runs: int, seconds: float, most: float) -> tuple[Any, Any]:
        import numpy as np

        times = np.full(max(runs, int(1e3 * seconds / session.ms) + 1), session.ms)
        return times, times

    def whole_operators(paths: list[Path], request: dict[str, Any]) -> dict[str, Any]:
        models = [counted(path, request) for path in paths]
        found = [{"ms": sum(each[2] for each in model), "operators": model} for model in models]
        return {"models": found, "clock": "cpu", "passes": 10, **calm()}

    def calm(*_: Any) -> dict[str, Any]:
        return {"waited": 0.0, "stolen": 0.0, "contended": False}

    timing.ready, timing.time_runs, timing.unrest = ready, time_runs, calm
    timing.warm_up = lambda session, *_: session.ms
    timing.ROUND_SECONDS = 0.0
    agent.MEASUREMENTS["operators"] = whole_operators


def numel(shape: list[int]) -> int:
    """Return the number of elements."""
    count = 1
    for size in shape:
        count *= size
    return count


if __name__ == "__main__":
    program, _, rest = sys.stdin.buffer.read().decode().rpartition("\nmain(")
    exec(compile(program, "agent", "exec"))
    steady(*(sys.modules[name] for name in (AGENT, f"{AGENT}.timing", f"{AGENT}.operators")))
    exec(compile(f"main({rest}", "call", "exec"))
