"""Csv files with one architecture per row: tables of true values that are read, and logs of scores that grow."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from compress.core.atomic import write_text
from compress.core.errors import InputError
from evaluators.candidates.evaluator import Metrics
from evaluators.tasks import TaskConfig
from search.supernets.rank_quality import SMALLEST, Direction
from spaces.architecture import Architecture, Choice, Decision
from spaces.space import Space
from spaces.table import Table

CODE = "code"
"""The column with an architecture's published code in files that we write."""
_LOSS = re.compile(r"loss|(?<![a-z])err(or)?s?(?![a-z])")
"""What columns are called whose small values are the better ones."""


@dataclass(frozen=True)
class Truth:
    """True values of networks.

    Attributes:
        values: canonical architecture -> its value; the mean where several rows are of the same network.
        metric: what the values are called.
        direction: which way they are better.
        source: where they come from, as a report tells it.
        rows: how many rows they come from.
    """

    values: Mapping[Architecture, float]
    metric: str
    direction: Direction
    source: str
    rows: int


def read_truth(
    path: str,
    space: Space,
    task: TaskConfig,
    metric: str | None = None,
    code: Sequence[str] = (),
    direction: Direction | None = None,
) -> Truth:
    """Read a table of true values.

    Args:
        path: a csv file with a header, maybe gzipped.
        space: whose networks the rows are, by a column per decision or a column with the space's published code.
        task: whose metrics a column may be called after.
        metric: the column with the values; None: one called like a metric of the task, else the only one left.
        code: the column with the code, or those whose values make it up in that order; empty: found by itself.
        direction: which way values are better; None: as the task's metric of that name, else smaller where the name
            speaks of a loss or an error, else larger.

    Raises:
        InputError: in one sentence with row and column, for a file that cannot be read or does not fit the space.
    """
    table = Table(path)
    ours, architectures = _architectures(table, space, code)
    column = metric if metric is not None else _metric(table, [n for n in table.header if n not in ours], task)
    values: dict[Architecture, list[float]] = {}
    for number, (arch, value) in enumerate(zip(architectures, table.numbers(column), strict=True), start=2):
        if math.isnan(value):
            raise InputError(f"{table.path}:{number}: {column}: no number; every row needs one")
        values.setdefault(arch, []).append(value)
    if len(values) < SMALLEST:
        raise InputError(f"{table.path}: {len(values)} different network(s); at least {SMALLEST} are needed to rank")
    ways = {each.name: each.direction for each in task.metrics}
    return Truth(
        values={arch: fmean(found) for arch, found in values.items()},
        metric=column,
        direction=direction or ways.get(column) or ("minimize" if _LOSS.search(column.lower()) else "maximize"),
        source=table.path.name,
        rows=len(table.rows),
    )


def _architectures(table: Table, space: Space, code: Sequence[str]) -> tuple[list[str], list[Architecture]]:
    """Return the columns that say which network a row is, and the canonical architecture of each row."""
    header, names = table.header, [decision.name for decision in space.decisions]
    always = [decision.name for decision in space.decisions if decision.when is None]
    columns = {}
    if not code and any(name in header for name in names) and all(name in header for name in always):
        columns = {name: name for name in names if name in header}
    elif not code and _in_order(space, table):
        columns = dict(zip(names, header, strict=False))
    if columns:
        texts = [table.column(column) for column in columns.values()]
        found = [_chosen(space, dict(zip(columns, row, strict=True))) for row in zip(*texts, strict=True)]
        return list(columns.values()), _read(table, found, lambda row: space.check(row, drop_untaken=True), space)
    if not code:
        code = [name for name in header if header.count(name) == 1 and _is_code(space, table.column(name))][:1]
    if not code:
        lacking = [name for name in always or names if name not in header]
        missing = ", ".join(lacking[:6]) + (", ..." if len(lacking) > 6 else "")
        raise InputError(
            f"{table.path}: does not say which networks of {space.name} its rows are: no column {missing}, and none "
            f"that holds codes of the space; name the columns in rank.code; there are {', '.join(header)}"
        )
    cells = [table.column(name) for name in code]
    codes = [_code(row[0]) if len(code) == 1 else [_scalar(text) for text in row] for row in zip(*cells, strict=True)]
    return list(code), _read(table, codes, space.parse, space)


def _in_order(space: Space, table: Table) -> bool:
    """Return whether the first columns hold a choice per decision in the first row, none of them called as another."""
    names = [decision.name for decision in space.decisions]
    moved = any(column in names and column != name for name, column in zip(names, table.header, strict=False))
    pairs = list(zip(space.decisions, table.rows[0], strict=False))
    fits = all(decision.index(_choice(decision, text)) >= 0 for decision, text in pairs)
    return fits and len(pairs) == len(space.decisions) and not space.conditional and not moved


def _read(table: Table, rows: Sequence[Any], reads: Callable[[Any], Architecture], space: Space) -> list[Architecture]:
    """Return the canonical architecture of each row, which `reads` makes of its choices or its code."""
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            found.append(space.canonical(reads(row)))
        except InputError as error:
            raise InputError(f"{table.path}:{number}: {error.problems[0]}") from error
    return found


def _chosen(space: Space, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return choices from the text of each column; an empty field is a decision that is not taken."""
    named = {decision.name: decision for decision in space.decisions}
    return {name: _choice(named[name], text) for name, text in texts.items() if text.strip()}


def _choice(decision: Decision, text: str) -> Choice:
    """Return the choice that `text` stands for; the text itself where it stands for none."""
    for choice in decision.choices:
        if str(choice) == text.strip():
            return choice
    number = _scalar(text)
    return decision.choices[decision.index(number)] if decision.index(number) >= 0 else number


def _scalar(text: str) -> Choice:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def _code(text: str) -> Any:
    """Return a code as the space takes it: text, or what lists and mappings in JSON hold."""
    if text.strip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text.strip()


def _is_code(space: Space, texts: Sequence[str]) -> bool:
    """Return whether the first row of a column reads as a code of the space."""
    try:
        space.parse(_code(texts[0]))
    except InputError:
        return False
    return True


def _metric(table: Table, others: Sequence[str], task: TaskConfig) -> str:
    """Return the column of true values among `others`, those that do not say which network a row is."""
    known = [each.name for each in task.metrics if each.name in others]
    numeric = [name for name in others if name and _is_numeric(table, name)]
    accuracy = [name for name in numeric if "acc" in name.lower()]
    for found in (known[:1], accuracy, numeric):
        if len(found) == 1:
            return found[0]
    if len(others) == 1:
        table.numbers(others[0])  # raises InputError: which of its fields is no number
    listed = ", ".join(others) or "none"
    raise InputError(f"{table.path}: which column holds the true values is not clear; name it in rank.metric: {listed}")


def _is_numeric(table: Table, name: str) -> bool:
    try:
        table.numbers(name)
    except InputError:
        return False
    return True


class ArchitectureLog:
    """Metrics of architectures in a csv file that grows by a row at a time, so that a killed process loses none.

    Columns: the published code where the space has one, a column per decision (empty where it is not taken), and the
    metrics.
    """

    def __init__(self, path: Path, space: Space, metrics: Sequence[str]) -> None:
        """Open the file, or the place where it will be; a row that a kill has cut short is dropped.

        Raises:
            InputError: the file holds something else.
        """
        self.path, self.space, self.metrics = path, space, tuple(metrics)
        self._names = [decision.name for decision in space.decisions]
        self._coded = _has_codes(space)
        taken = {CODE, *self._names}
        self.header = [*([CODE] if self._coded else []), *self._names]
        self.header += [f"{name} (metric)" if name in taken else name for name in self.metrics]
        self.found: dict[Architecture, Metrics] = self._read() if path.is_file() else {}

    def add(self, arch: Architecture, metrics: Metrics) -> None:
        """Enter the metrics of `arch`, which is canonical, and hand them to the system, which a kill leaves alone."""
        self.found[arch] = metrics
        new = not self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_lines(([self.header] if new else []) + [self._row(arch, metrics)]))

    def write(self, path: Path, architectures: Collection[Architecture]) -> None:
        """Write the rows of `architectures`, in their order, to another file."""
        write_text(path, _lines([self.header, *(self._row(arch, self.found[arch]) for arch in architectures)]))

    def _row(self, arch: Architecture, metrics: Metrics) -> list[str]:
        code = [code_text(self.space, arch)] if self._coded else []
        return [*code, *(str(arch.get(name, "")) for name in self._names), *(repr(metrics[n]) for n in self.metrics)]

    def _read(self) -> dict[Architecture, Metrics]:
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        rows = list(csv.reader(io.StringIO(whole)))
        if not rows:
            self.path.unlink()
            return {}
        if rows[0] != self.header:
            raise InputError(f"{self.path}: holds something else than was written there; delete it to begin anew")
        if whole != text:
            write_text(self.path, whole)
        found, first = {}, len(self.header) - len(self.metrics)
        for row in rows[1:]:
            choices = dict(zip(self._names, row[first - len(self._names) : first], strict=True))
            arch = self.space.canonical(self.space.check(_chosen(self.space, choices)))
            found[arch] = dict(zip(self.metrics, map(float, row[first:]), strict=True))
        return found


def code_text(space: Space, arch: Architecture) -> str:
    """Return the published code as one text, JSON where it is no text; that of the choices for a space without one."""
    code = space.to_code(arch)
    return code if isinstance(code, str) else json.dumps(code)


def _has_codes(space: Space) -> bool:
    arch = next(iter(space))
    return bool(space.to_code(arch) != dict(arch))


def _lines(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
