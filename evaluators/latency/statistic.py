"""Which of a measurement's times stands for it, where one figure is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluators.latency.agent.clock import one_thread


def by_cpu_time(times: Mapping[str, Any]) -> bool:
    """Return whether METRICS.latency_ms are told by `cpu_p50`, ms of CPU time, and not by `p50`.

    They are where the machine was busy with other work and the processor did it all on one thread, so that other work
    moves its CPU time far less; on a GPU, CPU time is only that of waiting for it.
    """
    given = {"threads": times["threads"], "provider": times["provider"] or "CPU"}
    return bool(times["contended"] and times["cpu_p50"] and one_thread(given))
