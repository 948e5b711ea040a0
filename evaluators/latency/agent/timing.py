"""The two measurements: one model by itself, or several in turns; sent to targets, see `evaluators.latency.agent`."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.latency.agent.clock import Watch, cpu_clock, one_thread, time_runs, unrest, warm_up
from evaluators.latency.agent.feed import ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evaluators.latency.agent.clock import Clock
    from evaluators.latency.agent.feed import Request

WARMUP_RUNS, WARMUP_SECONDS = 10, 0.5
BLOCK_RUNS, BLOCK_SECONDS = 10, (0.004, 0.3)
ROUND_ROWS, ROUND_SECONDS, LEAST_ROUNDS = 4, 0.7, 8
SAMPLES_KEPT, RESAMPLES = 1000, 1000


def measure(path: Path, request: Request) -> dict[str, Any]:
    """Return the distribution of a model's latency, in ms per batch, and what it depends on (see `LatencyRecord`)."""
    session, feed = ready(path, request)
    clock, watch = cpu_clock(request["threads"]), Watch()
    warm_up(session, feed, WARMUP_RUNS, min(WARMUP_SECONDS, request["seconds"]))
    with watch:
        times = time_runs(session, feed, clock, request["runs"], request["seconds"], request["max_seconds"])
    return describe(times, clock, feed, request, unrest(times[:1], watch, request))


def describe(
    times: Sequence[Any], clock: Clock | None, feed: dict[str, Any], request: Request, state: dict[str, Any]
) -> dict[str, Any]:
    """Return the record of a model's wall and CPU times."""
    import numpy as np

    wall, cpu = times
    cpu_p50, cpu_p90 = (float(np.percentile(cpu, q)) for q in (50, 90)) if clock else (None, None)
    first = next(iter(feed.values()), None)
    return {
        **{f"p{q}": float(np.percentile(wall, q)) for q in (10, 50, 90, 95, 99)},
        "min": float(wall.min()),
        "mean": float(wall.mean()),
        "std": float(wall.std()),
        "cv": float(wall.std() / wall.mean()),
        "cpu_min": float(cpu.min()) if clock else None,
        "cpu_p50": cpu_p50,
        "cpu_p90": cpu_p90,
        "contention": float(wall.sum() / cpu.sum()) if clock and one_thread(request) else None,
        **state,
        "runs": len(wall),
        "threads": request["threads"],
        "batch": request["batch"],
        "shape": [] if first is None else list(first.shape),
        "dtype": "" if first is None else str(first.dtype),
        "optimization": request["optimization"],
        "provider": request["provider"],
        "samples": [float(each) for each in wall[:: -(-len(wall) // SAMPLES_KEPT)]],
    }


def compare(paths: Sequence[Path], request: Request) -> dict[str, Any]:
    """Return the record of every model, and how many times slower the first is than each other one, of the same runs.

    All run in turn, in random order, in blocks of about 10. Neighbouring blocks give one ratio of medians, so that slow
    drifts of the machine cancel. After 4 rows of blocks and 0.7 s all sessions are built and warmed anew, in random
    order: a session's place in memory shifts its speed by up to a per cent.
    """
    import numpy as np

    order, clock, watch = random.Random(request["seed"]), cpu_clock(request["threads"]), Watch()
    started = time.perf_counter()
    deadline = started + request["max_seconds"] * max(1, len(paths) - 1)
    rounds: list[Any] = []
    blocks: list[list[Any]] = [[] for _ in paths]
    while True:
        feeds, medians = one_round(paths, request, clock, order, watch, blocks, deadline)
        rounds.append(medians)
        times: list[Any] = [[np.concatenate(kind) for kind in zip(*runs)] for runs in blocks]
        state = unrest([wall for wall, _ in times], watch, request)
        name = "cpu" if state["contended"] and clock and one_thread(request) else "wall"
        pairs = [[each[:, (0, other), int(name == "cpu")] for each in rounds] for other in range(1, len(paths))]
        ratios = [{**summarise(each, request["seed"]), "clock": name} for each in pairs]
        narrow = all(np.ptp(each["ci95"]) <= request["precision"] * each["median"] for each in ratios)
        long = all(len(wall) >= request["runs"] and wall.sum() >= request["seconds"] * 1e3 for wall, _ in times)
        if (narrow and long and len(rounds) >= LEAST_ROUNDS) or time.perf_counter() >= deadline:
            records = [describe(each, clock, feed, request, state) for each, feed in zip(times, feeds)]
            return {"records": records, "ratios": ratios}


def one_round(
    paths: Sequence[Path],
    request: Request,
    clock: Clock | None,
    order: random.Random,
    watch: Watch,
    blocks: list[list[Any]],
    deadline: float,
) -> tuple[list[dict[str, Any]], Any]:
    """Add (wall, CPU) times of each model, on a new session, to `blocks`; return inputs, medians (rows, models, 2)."""
    import numpy as np

    models = range(len(paths))
    made = {index: ready(paths[index], request) for index in order.sample(models, len(paths))}
    once = max(warm_up(*each, 3, WARMUP_SECONDS / 4) for each in made.values()) / 1e3
    runs = max(BLOCK_RUNS, math.ceil(BLOCK_SECONDS[0] / once))
    runs = max(3, min(runs, int(BLOCK_SECONDS[1] / once)))
    medians: list[Any] = []
    began = time.perf_counter()
    while len(medians) < ROUND_ROWS or time.perf_counter() - began < ROUND_SECONDS:
        row = np.zeros((len(paths), 2))
        for index in order.sample(models, len(paths)):
            with watch:
                times = time_runs(*made[index], clock, runs, 0, math.inf)
            row[index] = [np.median(each) for each in times]
            blocks[index].append(times)
        medians.append(row)
        if time.perf_counter() >= deadline:
            break
    return [made[index][1] for index in models], np.array(medians)


def summarise(rounds: Sequence[Any], seed: int) -> dict[str, Any]:
    """Return the median ratio over the rounds' block medians (rows, 2 models) and its 95 % interval.

    Rounds are resampled, then rows within them. The interval is stretched as Student's t is wider than the normal
    distribution, and as a bootstrap of few rounds is too narrow: sqrt(n / (n - 1)) (1 + 1.4 / (n - 1)) for n rounds.
    """
    import numpy as np

    ratios = [medians[:, 0] / medians[:, 1] for medians in rounds]
    generator = np.random.default_rng(seed)
    sizes = np.array([len(each) for each in ratios])
    starts, everything = np.cumsum(sizes) - sizes, np.concatenate(ratios)
    chosen = generator.integers(len(ratios), size=(RESAMPLES, len(ratios), 1))
    within = generator.random((RESAMPLES, len(ratios), round(sizes.mean()))) * sizes[chosen]
    drawn = np.median(everything[starts[chosen] + within.astype(int)].reshape(RESAMPLES, -1), axis=1)
    median, freedom = np.median(everything), max(len(rounds) - 1, 1)
    stretch = (1 + 1 / freedom) ** 0.5 * (1 + 1.4 / freedom)
    low, high = median + stretch * (np.percentile(drawn, [2.5, 97.5]) - median)
    return {"median": float(median), "ci95": [float(low), float(high)], "blocks": len(everything)}
