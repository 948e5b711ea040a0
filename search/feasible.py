"""Whether any architecture keeps the constraints that cost nothing to check, found out before anything is trained."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compress.core.errors import InputError
from spaces.architecture import Architecture

if TYPE_CHECKING:
    from search.judge import Judge

DRAWS = 300
STEPS = 60
LISTED = 20_000
"""Spaces of so few architectures are gone through one by one."""


def check_constraints(judge: Judge) -> None:
    """Raise InputError where no architecture is found that keeps the constraints on metrics that cost nothing.

    Random architectures first, the first that keeps them ends it; then the nearest of them, changed decision by
    decision for as long as that brings it nearer. A small space is searched completely.
    """
    if not judge.objective.constraints:
        return
    space, generator = judge.space, random.Random(0)
    drawn = (space.sample(generator) for _ in range(DRAWS))
    near, excess = _nearest(judge, drawn)
    if excess > 0 and space.count() <= LISTED:
        near, excess = _nearest(judge, iter(space))
    for _ in range(STEPS):
        if excess <= 0 or near is None:
            return
        better, less = _nearest(judge, space.neighbours(near))
        if less >= excess:
            break
        near, excess = better, less
    if near is not None and excess > 0:
        raise InputError(
            f"search.objective.constraints: no architecture of space {space.name} keeps them; of the nearest that was "
            f"found, {judge.objective.complaint(judge.free(near))}"
        )


def _nearest(judge: Judge, architectures: Iterator[Architecture]) -> tuple[Architecture | None, float]:
    """Return the architecture that breaks the constraints least, and by how much; the first that keeps them ends it."""
    best: tuple[Architecture | None, float] = (None, float("inf"))
    for arch in architectures:
        excess = _excess(judge, arch)
        if excess < best[1]:
            best = (arch, excess)
        if excess <= 0:
            break
    return best


def _excess(judge: Judge, arch: Architecture) -> float:
    """Return by which shares of their limits an architecture breaks the constraints, summed."""
    total = 0.0
    for name, excess in judge.objective.violations(judge.free(arch)).items():
        limit = judge.objective.constraints[name]
        total += max(0.0, excess) / (max(abs(limit.min or 0.0), abs(limit.max or 0.0)) or 1.0)
    return total
