"""Architectures and the decisions that they answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

Choice = bool | int | float | str
"""What a decision may take: anything that JSON, Optuna's storages and Ray Tune keep as it is."""


@dataclass(frozen=True)
class Condition:
    """When a decision is taken at all: a predicate on the choices of earlier decisions.

    `holds` is handed only the decisions named in `reads`; those that are not taken themselves are missing.
    `text` completes the sentence "this decision is taken only ...", such as "where stage1.depth is 3 or 4".
    """

    text: str
    reads: tuple[str, ...]
    holds: Callable[[Mapping[str, Choice]], bool]


def where(name: str, *choices: Choice) -> Condition:
    """Return the condition that the earlier decision `name` took one of `choices`."""
    return Condition(f"where {name} is {either(choices)}", (name,), lambda taken: taken.get(name) in choices)


@dataclass(frozen=True)
class Decision:
    """A named categorical decision of a space; `when` says where it is taken (None: always)."""

    name: str
    choices: tuple[Choice, ...]
    when: Condition | None = None

    def index(self, choice: object) -> int:
        """Return the position of `choice`, or -1; True is not 1, but 1.0 is 1."""
        try:
            return self._places.get((choice, isinstance(choice, bool)), -1)
        except TypeError:  # a list, which has no hash, is no choice
            return -1

    @cached_property
    def _places(self) -> dict[tuple[object, bool], int]:
        return {(choice, isinstance(choice, bool)): place for place, choice in reversed([*enumerate(self.choices)])}


class Architecture(Mapping[str, Choice]):
    """One network of a space: an immutable, hashable mapping from each decision that is taken to its choice."""

    __slots__ = ("_choices", "_hash")

    def __init__(self, choices: Mapping[str, Choice]) -> None:
        self._choices = dict(choices)
        self._hash: int | None = None

    def __getitem__(self, name: str) -> Choice:
        return self._choices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._choices.items()))
        return self._hash

    def __reduce__(self) -> tuple[type[Architecture], tuple[dict[str, Choice]]]:
        return Architecture, (self._choices,)  # without the hash: texts hash differently in another process

    def __repr__(self) -> str:
        return f"Architecture({self._choices!r})"

    def number(self, name: str) -> int:
        """Return an integer choice, typed as such."""
        value = self._choices[name]
        assert isinstance(value, int)
        return value

    def text(self, name: str) -> str:
        """Return a textual choice, typed as such."""
        value = self._choices[name]
        assert isinstance(value, str)
        return value

    def to_json(self) -> str:
        """Return the choices as one JSON object."""
        return json.dumps(self._choices)


def either(choices: tuple[Choice, ...]) -> str:
    """Return `a`, `a or b`, `a, b or c`."""
    words = [str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
