"""Allocations that take the time that was asked for, as whole networks measured on the target.

A sum of parts is off by some percent of the network. So the allocation within the asked time is measured, and chosen
again by what predictions were off around it, for all budgets in one session each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from compress.core.errors import InputError
from compress.core.progress import say
from compress.prune.allocation.allocator import Allocation
from compress.prune.budget import BudgetConfig

TOLERANCE = 0.03  # of the asked latency
BUSY_TOLERANCE = 0.1  # where the machine was busy with other work: less cannot be told apart there
NEAR_ENOUGH = 0.02  # of it, and no other is looked for: the next measurement tells the same network that much apart
ROUNDS = 6
LOOKS = 12  # for an allocation that was not measured yet


@dataclass(frozen=True)
class Timing:
    """A network timed beside the dense one: its share of the dense latency with 95 % interval, and both in ms.

    `contended`: the machine was busy with other work. `by_cpu`: all are CPU times, for that reason.
    """

    share: float
    low: float
    high: float
    ms: float
    dense_ms: float
    contended: bool = False
    by_cpu: bool = False


@dataclass(frozen=True)
class Met:
    """A budget, the allocation that meets it, the share of the dense latency it was predicted to take, and it takes."""

    budget: BudgetConfig
    allocation: Allocation
    predicted_share: float
    timing: Timing


class Clock(Protocol):
    """A latency model as far as it is needed here: ms = constant + factor * sum of parts."""

    @property
    def constant(self) -> float:
        """What a network of no parts takes, in ms."""

    @property
    def factor(self) -> float:
        """What the sum of the parts is multiplied by."""

    @property
    def dense_ms(self) -> float:
        """What the dense network takes."""


def meet(
    budgets: Sequence[BudgetConfig],
    clock: Clock,
    within: Callable[[float], Allocation | None],
    measure: Callable[[Sequence[Allocation]], Sequence[Timing]],
) -> list[Met]:
    """Return for each budget the allocation of the least loss whose measured latency is the asked one within 3 %.

    Where the choices of a network are further apart than that, it is the next faster one: a budget is the most that a
    network may take.

    Args:
        budgets: of latency.
        clock: predicts the time of an allocation.
        within: sum of parts -> the allocation of the least loss.
        measure: times whole networks in turns with the dense one.

    Raises:
        InputError: a budget is not met; the nearest latency is named, which is above it.
    """
    dense_ms = clock.dense_ms
    best: list[Met | None] = [None] * len(budgets)

    def predicted(allocation: Allocation) -> float:
        return (clock.constant + clock.factor * allocation.time) / clock.dense_ms

    def allocated(share: float) -> Allocation | None:
        return within((share * clock.dense_ms - clock.constant) / clock.factor)

    measured: list[tuple[Allocation, Timing]] = []
    for _ in range(ROUNDS):
        places = [place for place, met in enumerate(best) if met is None or off(met) > NEAR_ENOUGH]
        points = [(predicted(allocation), timing.share) for allocation, timing in measured]
        known = [allocation for allocation, _ in measured]
        found = {p: _next(points, known, share_of(budgets[p], dense_ms), allocated) for p in places}
        new = {place: allocation for place, allocation in found.items() if allocation is not None}
        if not new:
            break
        for (place, allocation), timing in zip(new.items(), measure(list(new.values())), strict=True):
            dense_ms = timing.dense_ms
            measured.append((allocation, timing))
            share = predicted(allocation)
            say(f"{budgets[place]}: predicted {share:.3f} of the latency, measured {timing.share:.3f}")
        for place, budget in enumerate(budgets):
            ways = [Met(budget, allocation, predicted(allocation), timing) for allocation, timing in measured]
            best[place] = min(ways, key=lambda met: (not holds(met), off(met)))
    for budget, met in zip(budgets, best, strict=True):
        if met is None or not holds(met):
            raise InputError(_missed(budget, budgets, met))
    return [met for met in best if met is not None]


def _next(
    points: Sequence[tuple[float, float]],
    known: Sequence[Allocation],
    wanted: float,
    allocated: Callable[[float], Allocation | None],
) -> Allocation | None:
    """Return the allocation to measure next, None where there is no other one near.

    Between the nearest measured shares around the wanted one the prediction is off as a line between them says.
    """
    above = min([(1.0, 1.0), *(each for each in points if each[1] > wanted)], key=lambda each: each[1])
    below = max((each for each in points if each[1] <= wanted), key=lambda each: each[1], default=None)
    if below is None:
        aim = above[0] * wanted / above[1]
    else:
        aim = below[0] + (above[0] - below[0]) * (wanted - below[1]) / (above[1] - below[1])
    for _ in range(LOOKS):
        found = allocated(aim)
        if found is None or found not in known:
            return found
        aim *= 0.99 if below is None else 1.01
    return None


def share_of(budget: BudgetConfig, dense_ms: float) -> float:
    """Return the share of the dense latency that a budget asks for."""
    return budget.target if budget.kind == "latency" else budget.target / dense_ms


def off(met: Met) -> float:
    """Return by what share of the asked latency the measured one is another."""
    return abs(met.timing.share / share_of(met.budget, met.timing.dense_ms) - 1)


def holds(met: Met) -> bool:
    """Return whether the measured latency is at most 3 % above the asked one, or as near as a measurement can tell."""
    timing = met.timing
    wanted = share_of(met.budget, timing.dense_ms)
    above = BUSY_TOLERANCE if timing.contended else TOLERANCE
    return timing.low <= wanted or timing.share <= wanted * (1 + above)


def key_of(budget: BudgetConfig, budgets: Sequence[BudgetConfig]) -> str:
    """Return a budget as messages begin: with its key in the recipe."""
    return f"prune.budgets: {budget}" if len(budgets) > 1 else f"prune.budget.{budget}"


def _missed(budget: BudgetConfig, budgets: Sequence[BudgetConfig], met: Met | None) -> str:
    key = key_of(budget, budgets)
    if met is None:
        return f"{key} cannot be met; no choice of widths and blocks is so fast"
    timing = met.timing
    return (
        f"{key} cannot be met; the nearest that was found is "
        f"{timing.share:.3f} of the dense latency [{timing.low:.3f}, {timing.high:.3f}], {timing.ms:.3g} ms: "
        "no faster choice of widths and blocks was found, or the machine is busy with other work"
    )
