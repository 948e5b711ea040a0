"""Latency budgets are met on a target that is not quite what the model of it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from compress.core.errors import InputError
from compress.prune.allocation.allocator import Allocation
from compress.prune.allocation.meet import ROUNDS, Timing, meet, off
from compress.prune.budget import BudgetConfig


@dataclass(frozen=True)
class Clock:
    """Sums of parts are ms; the whole network takes 1 ms more."""

    constant: float = 1.0
    factor: float = 1.0
    dense_ms: float = 11.0


class Device:
    """A target on which `share` of what the parts take is real, with noise, and which knows the times in steps."""

    def __init__(self, share: float, step: float = 0.05, noise: float = 0.0, drift: float = 1.0) -> None:
        self.share, self.step, self.noise, self.drift = share, step, noise, drift
        self.sessions, self.files = 0, 0
        self.draw = np.random.default_rng(0)

    def within(self, time: float) -> Allocation | None:
        steps = int(time / self.step + 1e-9)
        return Allocation({"width": steps}, (), 10 - steps * self.step, steps * self.step) if steps >= 1 else None

    def measure(self, allocations: Sequence[Allocation]) -> list[Timing]:
        self.sessions += 1
        self.files += len(allocations)
        dense = 11.0 * self.drift
        found = []
        for each in allocations:
            true = (self.share * each.time / 10 + (1 - self.share) * (each.time / 10) ** 2) * 10 / 11 + 1 / 11
            seen = true * (1 + self.noise * self.draw.standard_normal())
            found.append(Timing(seen, seen * 0.99, seen * 1.01, seen * dense, dense))
        return found


@pytest.mark.parametrize("device", [Device(1.0), Device(0.6), Device(0.3), Device(0.8, noise=0.005)])
def test_budgets_are_met_within_three_percent_in_few_sessions(device: Device) -> None:
    budgets = [BudgetConfig(latency=share) for share in (0.7, 0.5, 0.35)]
    met = meet(budgets, Clock(), device.within, device.measure)
    assert [each.budget for each in met] == budgets
    assert all(off(each) <= 0.03 for each in met)
    assert device.sessions <= ROUNDS
    assert device.files <= 12  # what is met is not measured again


def test_milliseconds_are_of_the_session_that_they_were_measured_in() -> None:
    device = Device(0.8, drift=1.3)  # the machine is slower by now
    (met,) = meet([BudgetConfig(latency_ms=5.0)], Clock(), device.within, device.measure)
    assert met.timing.ms == pytest.approx(5.0, rel=0.03)


def test_a_budget_between_coarse_steps_gets_the_next_faster_network() -> None:
    device = Device(1.0, step=4.0)  # 5 or 9 of 11 ms
    (met,) = meet([BudgetConfig(latency=0.6)], Clock(), device.within, device.measure)
    assert met.timing.share == pytest.approx(5 / 11)


def test_nothing_so_fast_is_refused() -> None:
    device = Device(1.0)
    with pytest.raises(InputError, match=r"prune\.budget\.latency: 0\.05 cannot be met; no choice"):
        meet([BudgetConfig(latency=0.05)], Clock(), device.within, device.measure)
    assert device.sessions == 0


def test_on_a_busy_machine_and_within_the_interval_less_is_asked() -> None:
    device = Device(1.0, step=0.5)
    for timing, met in (({"contended": True}, True), ({"low": 0.5}, True), ({}, False)):

        def measure(allocations: Sequence[Allocation], timing: dict[str, Any] = timing) -> list[Timing]:
            return [
                replace(each, **{"share": 0.53, "low": 0.52, "high": 0.54, **timing})
                for each in device.measure(allocations)
            ]

        if met:
            assert meet([BudgetConfig(latency=0.505)], Clock(), device.within, measure)[0].timing.share == 0.53
        else:
            with pytest.raises(InputError, match=r"nearest that was found is 0\.530"):
                meet([BudgetConfig(latency=0.505)], Clock(), device.within, measure)
