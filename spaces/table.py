"""A space that is a table: published results of many networks, one row each, without the networks."""

from __future__ import annotations

import csv
import gzip
import math
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import Field, model_validator
from torch import nn

from compress.core.config import Config
from compress.core.errors import InputError, did_you_mean
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.assignments import Rows
from spaces.registry import spaces
from spaces.space import Fill, Space

if TYPE_CHECKING:
    from optuna import Trial


class TableConfig(Config):
    """A csv file (also gzipped; with commas, or else semicolons or tabs) with one architecture per row."""

    path: str = Field(description="the csv file, with a header line; may be gzipped")
    decisions: list[str] = Field([], description="columns that are decisions; their values are the choices")
    code: str | None = Field(None, description="instead: the column with one character per decision, such as 22212220")

    @model_validator(mode="after")
    def _one_of_both(self) -> TableConfig:
        if bool(self.decisions) == (self.code is not None):
            raise ValueError("name the columns either in decisions or in code")
        twice = [name for name in self.decisions if self.decisions.count(name) > 1]
        if twice:
            raise ValueError(f"decisions has {twice[0]!r} twice")
        return self


class Table:
    """A csv file in memory: columns as text."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        opener: Any = gzip.open if self.path.suffix == ".gz" else open
        try:
            with opener(self.path, "rt", newline="", encoding="utf-8-sig") as file:
                header = file.readline()
                rows = list(csv.reader(chain([header], file), delimiter=_delimiter(header), skipinitialspace=True))
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.path}: cannot be read as csv: {reason}") from error
        while rows and not rows[-1]:
            rows.pop()
        if len(rows) < 2:
            raise InputError(f"{self.path}: a header and at least one row are needed")
        self.header = [name.strip() for name in rows[0]]
        self.rows = rows[1:]
        for number, row in enumerate(self.rows, start=2):
            if len(row) != len(self.header):
                raise InputError(f"{self.path}:{number}: {len(row)} fields; the header has {len(self.header)}")

    def column(self, name: str) -> list[str]:
        """Return a column; an unknown name is an InputError that names the nearest."""
        if name not in self.header:
            allowed = ", ".join(self.header)
            raise InputError(f"{self.path}: no column {name!r}; allowed: {allowed}{did_you_mean(name, self.header)}")
        if self.header.count(name) > 1:
            raise InputError(f"{self.path}: two columns are called {name!r}")
        at = self.header.index(name)
        return [row[at] for row in self.rows]

    def numbers(self, name: str) -> list[float]:
        """Return a column of numbers, nan where a field is empty."""
        result = []
        for number, text in enumerate(self.column(name), start=2):
            try:
                result.append(float(text) if text.strip() else math.nan)
            except ValueError:
                raise InputError(f"{self.path}:{number}: {name}: not a number; got {text!r}") from None
            if math.isinf(result[-1]):
                raise InputError(f"{self.path}:{number}: {name}: not a finite number; got {text!r}")
        return result

    def choices(self, name: str) -> list[Choice]:
        """Return a column of choices: whole numbers, else numbers, else text; an empty field is an InputError."""
        texts = self.column(name)
        for number, text in enumerate(texts, start=2):
            if not text.strip():
                raise InputError(f"{self.path}:{number}: {name}: empty; every row needs a choice for every decision")
        return _typed(texts)


@spaces.register("table")
class TableSpace(Space):
    """The rows of a table as architectures: a space to try strategies on, since it cannot be built."""

    Config = TableConfig
    config: TableConfig

    def __init__(self, config: TableConfig) -> None:
        self.table = Table(config.path)
        super().__init__(config)
        self._rows = Rows([dict.fromkeys(self._names) | row for row in self._architectures])
        complete = math.prod(len(decision.choices) for decision in self.decisions) == len(self._unique)
        self.candidates = None if complete else self._unique

    def _decisions(self) -> Sequence[Decision]:
        columns = self._columns()
        self._names = list(columns)
        self._architectures = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return [Decision(name, tuple(sorted(set(values), key=_order))) for name, values in columns.items()]

    def _columns(self) -> dict[str, list[Choice]]:
        if self.config.code is None:
            return {name: self.table.choices(name) for name in self.config.decisions}
        codes = self.table.column(self.config.code)
        lengths = {len(code) for code in codes}
        if len(lengths) != 1 or lengths == {0}:
            raise InputError(f"{self.table.path}: the codes in column {self.config.code!r} differ in length")
        return {f"layer{place}": _typed([code[place] for code in codes]) for place in range(lengths.pop())}

    @cached_property
    def _unique(self) -> list[Architecture]:
        return list(dict.fromkeys(map(Architecture, self._architectures)))

    def rows_of(self, arch: Mapping[str, Choice]) -> list[int]:
        """Return the numbers, from 0, of all rows of an architecture."""
        return self._places[self.check(arch)]

    @cached_property
    def _places(self) -> dict[Architecture, list[int]]:
        places: dict[Architecture, list[int]] = {}
        for number, choices in enumerate(self._architectures):
            places.setdefault(Architecture(choices), []).append(number)
        return places

    def check(self, choices: Mapping[str, Any], drop_untaken: bool = False) -> Architecture:
        """Return `choices` as an architecture of the table; one that has no row is an InputError."""
        arch = super().check(choices, drop_untaken)
        if arch not in self._places:
            raise InputError(f"{self.table.path}: no row with {dict(arch)}")
        return arch

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of a code such as "22212220", or of a list with one value per decision."""
        given = list(code) if isinstance(code, str | list | tuple) else [code]
        if len(given) != len(self.decisions):
            raise InputError(f"a code has {len(self.decisions)} places; got {code!r}")
        return dict(zip(self._names, _typed([str(value) for value in given]), strict=True))

    def count(self) -> int:
        """Return the number of different architectures in the table."""
        return len(self._unique)

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self._unique)

    def sample(self, generator: random.Random) -> Architecture:
        """Draw one architecture of the table."""
        return generator.choice(self._unique)

    def mutate(self, arch: Architecture, generator: random.Random) -> Architecture:
        """Return the row nearest to `arch` with one decision changed."""
        changed = super().mutate(arch, generator)
        return Architecture(self._rows.nearest(changed, [arch], generator))

    def neighbours(self, arch: Architecture, generator: random.Random | None = None) -> Iterator[Architecture]:
        """Yield the rows that differ in one decision."""
        return (other for other in super().neighbours(arch, generator) if other in self._places)

    def complete(self, choices: Mapping[str, Any], fill: Fill) -> Architecture:
        """Return the row nearest to `choices`, those that are missing filled in first."""
        return self._nearest(super().complete(choices, fill))

    def suggest(self, trial: Trial) -> Architecture:
        """Let an Optuna trial take every decision; the row nearest to that is the architecture."""
        return self._nearest(super().suggest(trial))

    def _nearest(self, arch: Architecture) -> Architecture:
        return Architecture(self._rows.nearest(arch, [], random.Random(arch.to_json())))

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        self._has_no_networks()

    def cost(self, *_: Any, **__: Any) -> dict[str, int]:
        """Raise InputError: a table has no networks whose cost could be counted."""
        raise InputError(
            f"{self.table.path}: a table holds results, not networks whose params and macs could be counted; name the "
            "columns that have them in search.evaluator.costs"
        )

    def _has_no_networks(self) -> NoReturn:
        raise InputError(f"{self.table.path}: a table holds results, not networks; nothing can be built from it")


def _delimiter(header: str) -> str:
    """Return what stands between fields: a comma, unless the header has none."""
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _typed(texts: list[str]) -> list[Choice]:
    """Return a column as whole numbers, else numbers, else text."""
    for kind in (int, float):
        try:
            values: list[Choice] = [kind(text) for text in texts]
        except ValueError:
            continue
        if kind is int or all(math.isfinite(float(value)) for value in values):
            return values
    return list(texts)


def _order(choice: Choice) -> tuple[bool, Any]:
    return (isinstance(choice, str), choice)
