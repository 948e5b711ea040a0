"""The 50 decisions of the NASNet space, and architectures as lists of 50 integers.

Per cell (normal, reduction) and block: the two inputs, the numbers of the two operations, 0 to add or 1 to concatenate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.core.errors import InputError
from spaces.architecture import Choice
from spaces.nasnet.genotype import BLOCKS, CELLS, FIELDS
from spaces.nasnet.operations import OPERATIONS

COMBINES = ("add", "concat")


def alphabets() -> dict[str, tuple[Choice, ...]]:
    """Return for each decision, in order, what its integers 0, 1, ... stand for."""
    return {
        f"{kind}.block{block}.{field}": _alphabet(field, block)
        for kind in CELLS
        for block in range(BLOCKS)
        for field in FIELDS
    }


def _alphabet(field: str, block: int) -> tuple[Choice, ...]:
    if field.startswith("input"):
        return tuple(range(block + 2))
    return OPERATIONS if field.startswith("op") else COMBINES


def encode(choices: Mapping[str, Choice]) -> list[int]:
    """Return the 50 integers of `choices`."""
    return [alphabet.index(choices[name]) for name, alphabet in alphabets().items()]


def decode(code: Sequence[Any]) -> dict[str, Choice]:
    """Return the choices that `encode` turned into `code`.

    Raises:
        InputError: wrong length, or integers that stand for nothing, with their positions.
    """
    known = alphabets()
    if len(code) != len(known):
        raise InputError(f"a NASNet code has {len(known)} integers (2 cells, 5 blocks, 5 choices); got {len(code)}")
    problems = [
        f"{name} (position {position}): got {value!r}; allowed 0 to {len(alphabet) - 1}"
        for position, (value, (name, alphabet)) in enumerate(zip(code, known.items(), strict=True))
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(alphabet)
    ]
    if problems:
        raise InputError(*problems)
    return {name: alphabet[value] for value, (name, alphabet) in zip(code, known.items(), strict=True)}
