"""The two published ways to write a placement: segment lengths such as [4, 3, 3], and one binary digit per unit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from compress.core.errors import InputError
from spaces.pooling.tree import decision_name


def lengths_of(positions: Sequence[int], units: int) -> list[int]:
    """Return how many units work at each resolution."""
    ends = [*positions, units]
    return [end - start for start, end in zip([0, *positions], ends, strict=True)]


def binary_of(positions: Sequence[int], units: int) -> str:
    """Return one digit per unit: 1 where the map is halved at that unit."""
    return "".join(str(int(unit in positions)) for unit in range(units))


def read_code(code: Any, units: int, halvings: int) -> tuple[int, ...]:
    """Return the sorted positions of segment lengths (a list) or of a binary code (a string).

    Raises InputError naming the decision or the segment that is wrong and what is allowed.
    """
    if isinstance(code, str):
        return _read_binary(code, units, halvings)
    if isinstance(code, list | tuple) and all(type(length) is int for length in code):
        return _read_lengths(code, units, halvings)
    lengths = f"a list of {halvings + 1} segment lengths that sum to {units}"
    raise InputError(
        f"code: got {code!r}; allowed {lengths}, or a string of {units} binary digits with {halvings} ones"
    )


def _read_binary(code: str, units: int, halvings: int) -> tuple[int, ...]:
    if len(code) != units or set(code) - {"0", "1"}:
        raise InputError(f"binary code: got {code!r}; allowed {units} digits 0 or 1, one per unit")
    positions = tuple(unit for unit, digit in enumerate(code) if digit == "1")
    if positions[:1] == (0,):
        raise InputError(_at_start(f"1 at position 0 of {code!r}", units))
    if len(positions) != halvings:
        raise InputError(f"binary code: got {code!r} with {len(positions)} ones; allowed exactly {halvings}")
    return positions


def _read_lengths(code: Sequence[int], units: int, halvings: int) -> tuple[int, ...]:
    if len(code) != halvings + 1:
        raise InputError(f"segment lengths: got {len(code)} of them, {list(code)}; allowed exactly {halvings + 1}")
    if code[0] == 0:
        raise InputError(_at_start(f"a first segment of 0 units in {list(code)}", units))
    for index, length in enumerate(code):
        if length < 1:
            raise InputError(f"segment {index + 1}: got {length} units in {list(code)}; allowed 1 or more")
    if sum(code) != units:
        raise InputError(f"segment lengths: got {list(code)}, {sum(code)} units; allowed lengths that sum to {units}")
    return tuple(accumulate(code[:-1]))


def _at_start(got: str, units: int) -> str:
    return f"{decision_name(0)}: got {got}; the map can be halved at units 1 to {units - 1} only"
