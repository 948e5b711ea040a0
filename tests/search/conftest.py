"""A space of 256 networks as a table, and searches over it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evaluators.candidates.tabular import TabularEvaluator
from search.config import SearchConfig
from search.job import SearchJob
from tests.support.processes import Child

DECISIONS = ["a", "b", "c", "d"]


def top1(a: int, b: int, c: int, d: int) -> float:
    return 90.0 + a - (b - 2) ** 2 + 0.5 * c * (d == 1) - 0.1 * d


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv file with all 4^4 networks: accuracy, and cost that grows with every choice."""
    path = tmp_path_factory.mktemp("table") / "results.csv"
    rows = [",".join(map(str, (*arch, top1(*arch), 10 * sum(arch)))) for arch in itertools.product(range(4), repeat=4)]
    path.write_text("\n".join(["a,b,c,d,accuracy,cost", *rows]) + "\n")
    return path


@pytest.fixture
def job(table: Path, tmp_path: Path) -> Callable[..., SearchJob]:
    """Makes searches over the table; arguments are keys of the section `search`."""

    def make(directory: Path = tmp_path, **section: Any) -> SearchJob:
        given: dict[str, Any] = {
            "space": {"name": "table", "options": {"path": str(table), "decisions": DECISIONS}},
            "strategy": {"name": "regularized_evolution", "population": 8, "sample": 3},
            "evaluator": {"kind": "tabular", "metrics": {"top1": "accuracy"}, "costs": {"macs": "cost"}},
            "trials": 30,
        }
        config = SearchConfig.model_validate(given | section)
        return SearchJob(config, None, None, "toy", 0, "cpu", directory)

    return make


def search_slowly(job: SearchJob, seconds: float, log: Path) -> None:
    """Search until the study is complete; every evaluation takes `seconds` and is written to `log`."""
    quick = TabularEvaluator.evaluate

    def slow(self: TabularEvaluator, arch: Any, *rest: Any) -> Any:
        time.sleep(seconds)
        with log.open("a") as file:
            file.write(arch.to_json() + "\n")
        return quick(self, arch, *rest)

    TabularEvaluator.evaluate = slow  # type: ignore[assignment, method-assign]
    runner = job.open()
    runner.revive()
    job.run(runner, None)


@pytest.fixture
def child() -> Callable[[SearchJob, float, Path], Child]:
    """Starts a process that searches, see `search_slowly`."""
    return partial(Child, search_slowly)
