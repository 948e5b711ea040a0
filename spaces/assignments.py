"""A list of assignments of decisions, such as the rows of a table, and the nearest of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Rows:
    """The only assignments there are; every one has a choice for every decision."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = list(rows)
        self.names = list(self.rows[0])
        values = {name: dict.fromkeys(row[name] for row in self.rows) for name in self.names}
        self._code = {name: {value: code for code, value in enumerate(found)} for name, found in values.items()}
        self._codes = np.array([self._encode(row) for row in self.rows], dtype=np.int32)
        self._number = {tuple(codes): number for number, codes in enumerate(self._codes.tolist())}

    def find(self, choices: Mapping[str, Any]) -> int | None:
        """Return the number of the row that equals `choices`, or None."""
        return self._number.get(tuple(self._encode(choices)))

    def nearest(
        self, choices: Mapping[str, Any], done: Sequence[Mapping[str, Any]], generator: random.Random
    ) -> Mapping[str, Any]:
        """Return the row outside `done` that differs from `choices` in the fewest decisions; ties are drawn."""
        distance = (self._codes != np.array(self._encode(choices), dtype=np.int32)).sum(axis=1)
        for other in done:
            number = self.find(other)
            if number is not None:
                distance[number] += len(self.names) + 1
        return self.rows[generator.choice(np.flatnonzero(distance == distance.min()).tolist())]

    def _encode(self, choices: Mapping[str, Any]) -> list[int]:
        return [self._code[name].get(choices.get(name), -1) for name in self.names]
