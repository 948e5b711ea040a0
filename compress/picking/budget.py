"""What a member may cost: `3.5ms`, `20M`, `5MB`, or a fraction of the full network's cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from compress.core.errors import InputError
from compress.core.formatting import count, file_size, milliseconds

_COUNTS = {"K": 1e3, "M": 1e6, "G": 1e9}
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ]*|%)\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Cost:
    """One kind of cost: its key, what it is called, the units of its budgets, how it is shown, and an example."""

    key: str
    title: str
    units: Mapping[str, float]
    show: Callable[[float], str]
    example: str


COSTS: Mapping[str, Cost] = {
    cost.key: cost
    for cost in (
        Cost("latency", "latency", {"s": 1e3, "ms": 1.0, "us": 1e-3}, milliseconds, "3.5ms"),
        Cost("macs", "MACs", _COUNTS, lambda value: f"{count(value)} MACs", "20M"),
        Cost("params", "params", _COUNTS, lambda value: f"{count(value)} params", "2M"),
        Cost("size", "size", {f"{unit}B": size for unit, size in _COUNTS.items()}, file_size, "5MB"),
    )
}
"""Latency in ms, MACs and parameters as counts, the size of the ONNX file in bytes."""


@dataclass(frozen=True)
class Limit:
    """The most that may be spent of one cost; `text` is as the user wrote it."""

    value: float
    fraction: bool
    text: str


@dataclass(frozen=True)
class Budget:
    """Limits by cost (a key of `COSTS`); all hold together."""

    limits: Mapping[str, Limit] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: Mapping[str, str | None]) -> Budget:
        """Return the budget of texts by cost; None is no limit.

        Raises:
            InputError: with every text that is no limit of its cost.
        """
        limits, problems = {}, []
        for key, text in given.items():
            if text is not None:
                try:
                    limits[key] = _limit(COSTS[key], text)
                except InputError as error:
                    problems += error.problems
        if problems:
            raise InputError(*problems)
        return cls(limits)

    @property
    def text(self) -> str:
        """The limits as flags: `--latency 3.5ms --macs 0.4`."""
        return " ".join(f"--{key} {limit.text}" for key, limit in self.limits.items())


def _limit(cost: Cost, text: str) -> Limit:
    units = {name.lower(): value for name, value in cost.units.items()}
    names = ", ".join(cost.units)
    allowed = f"a number with {names}, such as {cost.example}, or a fraction up to 1 of the full network's"
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise InputError(f"--{cost.key}  not a limit; got {text!r}; allowed {allowed}")
    value, unit = float(found[1]), found[2].lower()
    if unit == "%":
        if value > 100:
            raise InputError(f"--{cost.key}  more than the full network's; got {text!r}; allowed {allowed}")
        value, unit = value / 100, ""
    fraction = not unit and value <= 1
    if unit not in units and unit:
        raise InputError(f"--{cost.key}  not in a unit of {cost.title}; got {text!r}; allowed {allowed}")
    if not unit and not fraction and "K" not in cost.units:
        raise InputError(f"--{cost.key}  without a unit; got {text!r}; allowed {allowed}")
    if value <= 0 or not math.isfinite(value):
        raise InputError(f"--{cost.key}  must be a finite number above 0; got {text!r}; allowed {allowed}")
    return Limit(value * units.get(unit, 1.0), fraction, text.strip())
