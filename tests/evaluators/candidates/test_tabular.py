from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import InputError
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.candidates.tabular import TabularConfig, TabularEvaluator
from spaces.registry import create
from spaces.space import Space


def make(space: Space, **options: Any) -> TabularEvaluator:
    config = TabularConfig.model_validate({"metrics": {"top1": "accuracy"}, **options})
    found = config.make(EvaluatorContext(space, None, "cpu", 0, Path("unused")))
    assert isinstance(found, TabularEvaluator)
    return found


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two decisions; the row 1, 1 occurs twice, the row 2, 2 lacks its accuracy."""
    path = tmp_path / "results.csv"
    path.write_text("a,b,accuracy,cost\n1,1,80,5\n1,2,81.5,6\n2,1,79,7\n2,2,,8\n1,1,82,5\n")
    return path


@pytest.fixture
def space(table: Path) -> Space:
    return create("table", {"path": str(table), "decisions": ["a", "b"]})


def test_rows_of_one_network_are_averaged_and_costs_are_free(space: Space) -> None:
    ours = make(space, costs={"latency_ms": "cost"})
    assert ours.metrics == ("top1", "latency_ms")
    arch = space.check({"a": 1, "b": 1})
    assert ours.free(arch) == {"latency_ms": 5} and ours.evaluate(arch, ("top1",), 0) == {"top1": 81}
    assert ours.evaluate(space.check({"a": 1, "b": 2}), ours.metrics, 3) == {"top1": 81.5, "latency_ms": 6}


@pytest.mark.parametrize("mark", [";", "\t", ", "])
def test_fields_may_stand_between_other_marks(table: Path, mark: str) -> None:
    table.write_text(table.read_text().replace(",", mark))
    space = create("table", {"path": str(table), "decisions": ["a", "b"]})
    assert make(space).evaluate(space.check({"a": 1, "b": 2}), ("top1",), 0) == {"top1": 81.5}


def test_an_empty_field_names_its_line(space: Space) -> None:
    with pytest.raises(InputError, match=r"results\.csv:5: the table has no top1 for \{'a': 2, 'b': 2\}"):
        make(space).evaluate(space.check({"a": 2, "b": 2}), ("top1",), 0)


def test_networks_of_a_space_are_found_by_their_published_code(tmp_path: Path) -> None:
    space = create("nas_bench_macro", {"depths": (1, 1)})
    path = tmp_path / "macro.csv.gz"
    codes = ["".join(each) for each in itertools.product("012", repeat=2)][:-1]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(["arch,accuracy", *(f"{code},{50 + int(code)}" for code in codes)]))
    ours = make(space, path=str(path), code="arch")
    assert ours.evaluate(space.parse("12"), ("top1",), 0) == {"top1": 62} and ours.free(space.parse("12")) == {}
    with pytest.raises(InputError, match=r"macro\.csv\.gz: has no row for 22"):
        ours.evaluate(space.parse("22"), ("top1",), 0)


@pytest.mark.parametrize("name", ["pooling", "mnasnet", "mobilenetv3", "nats_size", "darts", "nasnet"])
@pytest.mark.parametrize(
    "spelt",
    [json.dumps, str, lambda code: json.dumps(code, separators=(",", ":"))],
    ids=["json", "python", "dense json"],
)
def test_codes_may_be_spelt_as_json_or_as_python_prints_them(
    name: str, spelt: Callable[[Any], str], tmp_path: Path
) -> None:
    """The scores that `compress rank` writes are such a table, with codes as JSON."""
    space, path = create(name, {}), tmp_path / "scores.csv"
    arch = space.sample(random.Random(0))
    code = space.to_code(arch)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["code", "accuracy"], [code if isinstance(code, str) else spelt(code), 70]])
    assert make(space, path=str(path), code="code").evaluate(arch, ("top1",), 0) == {"top1": 70}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"metrics": {"top1": "accurcy"}}, "no column 'accurcy'; allowed: a, b, accuracy, cost; did you mean"),
        ({"costs": {"top1": "cost"}}, "top1 is in metrics and in costs"),
        ({"code": "a"}, "search.evaluator.code: the space `table` brings its own file"),
        ({"path": "results.csv", "code": "a"}, "search.evaluator.path: the space `table` brings its own file"),
    ],
)
def test_wrong_columns_and_files_are_named(space: Space, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make(space, **options)


def test_a_space_of_networks_needs_a_file_and_the_column_of_codes(table: Path) -> None:
    space = create("nas_bench_macro")
    with pytest.raises(InputError, match=r"search.evaluator.path: missing; only the space `table`"):
        make(space)
    with pytest.raises(InputError, match=r"search.evaluator.code: missing; name the column"):
        make(space, path=str(table))
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read as csv"):
        make(space, path="absent.csv", code="arch")
