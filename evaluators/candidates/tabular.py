"""Metrics looked up in a table of published results."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Collection, Mapping
from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import Field

from compress.core.errors import InputError
from evaluators.candidates.evaluator import Evaluator, EvaluatorBase, EvaluatorContext, Metrics, Report, evaluators
from evaluators.tasks import TaskConfig
from spaces.architecture import Architecture
from spaces.space import Space
from spaces.table import Table, TableSpace


@evaluators.register("tabular")
class TabularConfig(EvaluatorBase):
    """A csv file with one row per architecture; rows that occur several times are averaged."""

    preloaded: ClassVar[tuple[str, ...]] = ()
    kind: Literal["tabular"] = "tabular"
    path: str | None = Field(None, description="the csv file; null: that of the space `table`, which brings its own")
    code: str | None = Field(None, description="with path: the column with the space's published code")
    metrics: dict[str, str] = Field(description="metric -> column, known once a trial is evaluated")
    costs: dict[str, str] = Field({}, description="metric (such as macs) -> column, known before anything is evaluated")

    def metrics_for(self, task: TaskConfig, sections: Mapping[str, Any]) -> Collection[str]:
        """Return the mapped columns."""
        return (*self.metrics, *self.costs)

    def make(self, context: EvaluatorContext) -> Evaluator:
        """Return the evaluator; raises InputError for a file or column that is not there."""
        return TabularEvaluator(self, context.space)


class TabularEvaluator(Evaluator):
    """Looks architectures up."""

    def __init__(self, config: TabularConfig, space: Space) -> None:
        twice = sorted(set(config.metrics) & set(config.costs))
        if twice:
            raise InputError(f"search.evaluator: {twice[0]} is in metrics and in costs; name it once")
        if isinstance(space, TableSpace) and (config.path is not None or config.code is not None):
            name = "code" if config.path is None else "path"
            raise InputError(f"search.evaluator.{name}: the space `table` brings its own file; leave it out")
        self.space = space
        if config.path is None:
            if not isinstance(space, TableSpace):
                raise InputError("search.evaluator.path: missing; only the space `table` brings its own file")
            table = space.table
        else:
            table = Table(config.path)
        self._path = table.path
        self._columns = {name: table.numbers(column) for name, column in {**config.metrics, **config.costs}.items()}
        self._costs = tuple(config.costs)
        self._places: dict[str, list[int]] | None = None
        if not isinstance(space, TableSpace):
            if config.code is None:
                raise InputError("search.evaluator.code: missing; name the column with the space's published code")
            self._places = {}
            for number, code in enumerate(table.column(config.code)):
                self._places.setdefault(_spelt(code), []).append(number)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The mapped columns."""
        return tuple(self._columns)

    def free(self, arch: Architecture) -> Metrics:
        """Return the costs of the row."""
        return self._look_up(arch, self._costs) if self._costs else {}

    def evaluate(self, arch: Architecture, wanted: Collection[str], seed: int, report: Report | None = None) -> Metrics:
        """Return the wanted metrics of the row."""
        return self._look_up(arch, [name for name in self._columns if name in wanted])

    def looked_up(self, arch: Architecture) -> Metrics:
        """Return all metrics of the row, as far as its fields are filled in."""
        rows = self._rows(arch)
        found = {name: fmean(column[row] for row in rows) for name, column in self._columns.items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def _look_up(self, arch: Architecture, names: Collection[str]) -> Metrics:
        rows = self._rows(arch)
        found = {name: [self._columns[name][row] for row in rows] for name in names}
        metrics = {name: fmean(values) for name, values in found.items()}
        for name, value in metrics.items():
            if math.isnan(value):
                raise InputError(f"{self._path}:{rows[0] + 2}: the table has no {name} for {dict(arch)}")
        return metrics

    def _rows(self, arch: Architecture) -> list[int]:
        if self._places is None:
            assert isinstance(self.space, TableSpace)
            return self.space.rows_of(arch)
        code = self.space.to_code(arch)
        found = self._places.get(_spelt(code))
        if found is None:
            raise InputError(f"{self._path}: has no row for {code}")
        return found


def _spelt(code: Any) -> str:
    """Return a code in the one spelling that all of the same code share; text may be JSON or a literal of Python."""
    if isinstance(code, str):
        text = code.strip()
        if text[:1] not in ("[", "{", "("):
            return text
        for reads in (json.loads, ast.literal_eval):
            try:
                code = reads(text)
                break
            except (ValueError, SyntaxError):
                continue
        else:
            return text
    return json.dumps(code, sort_keys=True, default=str)
