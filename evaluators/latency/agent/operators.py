"""What every operator of some models takes, and each model as a whole; sent to targets, see `evaluators.latency.agent`.

ONNX Runtime's own profile tells what an operator takes where it stands: with the layouts, fusions and caches that it
has there, which no file of that operator alone has. Writing it down slows a run by 5 to 30 %, so whole models are timed
afterwards without it, in the same sessions.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.latency.agent.clock import Watch, cpu_clock, one_thread, unrest
from evaluators.latency.agent.feed import ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evaluators.latency.agent.feed import Request

LONG_MS = 8.0
"""Models that take longer are run once in a turn, others thrice after one that warms the caches."""
PASSES, PROFILED_PASSES = (10, 100), (10, 30)  # every run under the profile leaves a third of a kilobyte an operator
QUIET_SHARE = 0.1
"""Of an operator's times the least tenth counts: where the machine is busy, others hold the processor now and then."""


def operators(paths: Sequence[Path], request: Request) -> dict[str, Any]:
    """Return for each model its time and its operators, in order: [name, type, ms, shapes of inputs and outputs].

    A model's `ms` is the lower quartile, over passes in which all models run in random order, of the least of a turn's
    runs: CPU time where one thread works, which a busy machine moves least, else wall time. Passes go on for `seconds`
    of this process' time with the profile and as long without, in the bounds of `PROFILED_PASSES` and `PASSES`.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = [ready(path, request, str(Path(folder) / str(index))) for index, path in enumerate(paths)]
        order, watch = random.Random(request["seed"]), Watch()
        profiled = [[False] for _ in paths]  # whether each run counts; the one that `ready` made does not
        passes(made, request, order, watch, profiled, PROFILED_PASSES)
        found = [read(Path(session.end_profiling()), kept) for (session, _), kept in zip(made, profiled)]
        times = passes(made, request, order, watch, [[] for _ in paths], PASSES)
    return {
        "models": [{"ms": ms, "operators": each} for ms, each in zip(whole(times, request), found)],
        "clock": "cpu" if one_thread(request) and cpu_clock(1) else "wall",
        "passes": len(times[0]),
        **unrest([wall for wall, _ in map(arrays, times)], watch, request),
    }


def passes(
    made: Sequence[Any],
    request: Request,
    order: random.Random,
    watch: Watch,
    counted: list[list[bool]],
    bounds: tuple[int, int],
) -> list[list[Any]]:
    """Run all models in random order, again and again; return the (wall, CPU) times of each turn, ms.

    Notes in `counted` for every run of each model whether its times count.
    """
    clock = cpu_clock(request["threads"]) or (lambda: 0)
    times: list[list[Any]] = [[] for _ in made]
    began = time.process_time()
    while len(times[0]) < bounds[0] or (len(times[0]) < bounds[1] and time.process_time() - began < request["seconds"]):
        for index in order.sample(range(len(made)), len(made)):
            session, feed = made[index]
            turn: list[Any] = []
            with watch:
                for number in range(4):
                    before_cpu, before_wall = clock(), time.perf_counter_ns()
                    session.run(None, feed)
                    wall, cpu = time.perf_counter_ns() - before_wall, clock() - before_cpu
                    long = wall > LONG_MS * 1e6
                    counted[index].append(number > 0 or long)
                    if counted[index][-1]:
                        turn.append((wall / 1e6, cpu / 1e6))
                    if long:
                        break
            times[index].append((min(each[0] for each in turn), min(each[1] for each in turn)))
    return times


def arrays(times: Sequence[Any]) -> Any:
    """Return wall and CPU times as two arrays."""
    import numpy as np

    return np.array(times).T


def whole(times: Sequence[Any], request: Request) -> list[float]:
    """Return what each model takes, ms: the lower quartile of its turns."""
    import numpy as np

    kind = 1 if one_thread(request) and cpu_clock(1) else 0
    return [float(np.percentile(arrays(each)[kind], 25)) for each in times]


def read(file: Path, counted: Sequence[bool]) -> list[Any]:
    """Return the operators of a profile (see `operators`); each one's time is the mean of its least ones."""
    import numpy as np

    events = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    file.unlink()
    runs: list[list[Any]] = [[]]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[-1].append(event)
        elif event.get("name") == "model_run":
            runs.append([])
    runs = [run for run, counts in zip(runs, counted) if counts]
    names = [event["name"] for event in runs[0]]
    durations = np.array([[event["dur"] for event in run] for run in runs if [e["name"] for e in run] == names])
    durations.sort(axis=0)
    least = durations[: max(1, round(len(durations) * QUIET_SHARE))].mean(axis=0) / 1e3
    return [
        [event["name"][: -len("_kernel_time")], event["args"].get("op_name", ""), float(ms), shapes(event["args"])]
        for event, ms in zip(runs[0], least)
    ]


def shapes(arguments: dict[str, Any]) -> list[Any]:
    """Return the shapes of an operator's inputs and outputs."""
    given = [*arguments.get("input_type_shape", []), *arguments.get("output_type_shape", [])]
    return [shape for each in given for shape in each.values()]
