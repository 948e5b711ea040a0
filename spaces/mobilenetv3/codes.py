"""Once-for-All's notation of a sub-net: lists of kernel sizes, expansion ratios and depths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.core.errors import InputError
from spaces.architecture import Architecture, Choice, Decision

_WORDS = {"ks": "kernel", "e": "expand", "d": "depth", "w": "width", "se": "se", "r": "resolution"}
"""Key of the notation, and the last word of the decisions that it answers; `w` and `se` are our own."""


def from_ofa(code: Any, decisions: Sequence[Decision]) -> dict[str, Any]:
    """Return the choices of a code such as `{"ks": [7, ...], "e": [6, ...], "d": [4, ...]}`.

    `ks` and `e` hold one value for each block, also for those beyond their stage's depth, whose values mean nothing;
    `d` one for each stage. One number stands for a whole list of it.

    Raises:
        InputError: a key is unknown or missing, or a list has the wrong length.
    """
    if not isinstance(code, Mapping):
        raise InputError(f"a code is a mapping with the keys ks, e and d, such as ks: 7, e: 6, d: 4; got {code!r}")
    problems = [f"{key}: unknown key of a code; allowed {', '.join(_WORDS)}" for key in code if key not in _WORDS]
    found: dict[str, Any] = {}
    for key, word in _WORDS.items():
        names = _names(word, decisions)
        given = code.get(key)
        values = list(given) if isinstance(given, list | tuple) else [given] * len(names)
        if names and given is None:
            problems.append(f"{key}: missing; it holds one value for each of {names[0]} to {names[-1]}")
        elif given is not None and not names:
            problems.append(f"{key}: this space does not search the {word}")
        elif len(values) != len(names):
            problems.append(f"{key}: got {len(values)} values; allowed one, or {len(names)}: {names[0]} to {names[-1]}")
        else:
            found.update(zip(names, values, strict=True))
    if problems:
        raise InputError(*problems)
    return found


def to_ofa(arch: Architecture, decisions: Sequence[Decision]) -> dict[str, list[Choice]]:
    """Return the code of `arch`; blocks that it leaves out hold their first choice."""
    first = {decision.name: decision.choices[0] for decision in decisions}
    lists = {key: [arch.get(name, first[name]) for name in _names(word, decisions)] for key, word in _WORDS.items()}
    return {key: values for key, values in lists.items() if values}


def _names(word: str, decisions: Sequence[Decision]) -> list[str]:
    return [decision.name for decision in decisions if decision.name.rpartition(".")[2] == word]
