"""What a search leaves for people: report.json, the closing table, the last line, report.html."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.core.errors import InputError
from compress.report import compare_runs
from compress.report.closing import closing_table
from compress.runs.pipeline import RunResult, run
from search import tensorboard

DECISIONS = ["a", "b", "c", "d"]


def searched(folder: Path, search: dict[str, Any], data: dict[str, Any] | None = None, **sections: Any) -> RunResult:
    recipe = {"version": 1, "name": "found", "data": data or {"name": "none"}, "search": search, **sections}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run(folder / "recipe.yaml", out=folder / "run", device="cpu")


def table(folder: Path, **search: Any) -> RunResult:
    """Search 256 rows whose accuracy and cost both grow with every choice, by which no row dominates all."""
    rows = [(*arch, 80 + sum(arch), 100 * 3 ** sum(arch)) for arch in itertools.product(range(4), repeat=4)]
    lines = [",".join(map(str, row)) for row in [(*DECISIONS, "accuracy", "cost"), *rows]]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    section = {
        "space": {"name": "table", "options": {"path": str(folder / "table.csv"), "decisions": DECISIONS}},
        "strategy": {"name": "random"},
        "evaluator": {"kind": "tabular", "metrics": {"top1": "accuracy"}, "costs": {"macs": "cost"}},
        "trials": 25,
    }
    return searched(folder, section | search)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    objective = {"maximize": ["top1"], "minimize": ["macs"]}
    return table(tmp_path_factory.mktemp("front"), objective=objective, tensorboard=True)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A search for a network that is exported and timed, without any stage that changes it."""
    section = {
        "space": {"name": "mobilenetv3", "preset": "tiny"},
        "strategy": {"name": "random"},
        "evaluator": {"kind": "train", "train": {"epochs": 1}, "keep_weights": True},
        "trials": 1,
    }
    data = {"name": "digits", "image_size": 8, "limit_train": 100, "limit_test": 50, "batch_size": 20}
    latency = {"runs": 3, "seconds": 0, "max_seconds": 2}
    export = {"exporter": "torchscript"}
    return searched(tmp_path_factory.mktemp("network"), section, data, export=export, latency=latency)


def page(result: RunResult) -> str:
    return (result.directory / "report.html").read_text(encoding="utf-8")


def search_details(result: RunResult) -> dict[str, Any]:
    details = json.loads((result.directory / "stages" / "01-search" / "details.json").read_text())
    return dict(details["search"])


def test_of_several_objectives_the_front_is_kept_and_its_hypervolume_recorded(front: RunResult) -> None:
    details = search_details(front)
    values = [entry["values"] for entry in details["history"]]
    assert {tuple(best["values"]) for best in details["best"]} == set(map(tuple, values))  # none dominates another
    volume = details["hypervolume"]
    assert volume["reference"] == [min(top1 for top1, _ in values), max(macs for _, macs in values)]
    assert volume["course"][-1] == volume["final"] > 0
    assert len(volume["course"]) == len(values)
    files = {path.name for path in (front.directory / "stages" / "01-search").glob("best*")}
    assert files == {f"best{rank}.json" for rank in range(1, len(details["best"]) + 1)}


def test_the_page_draws_the_hypervolume_and_the_front_as_steps(front: RunResult) -> None:
    text = page(front)
    assert 'aria-label="hypervolume by evaluation"' in text
    assert "up to the worst of each seen: top1 " in text
    (chart,) = re.findall(r'<svg [^>]*aria-label="top1 by macs".*?</svg>', text)
    (line,) = re.findall(r'<polyline points="([^"]*)"', chart)
    corners = [tuple(map(float, corner.split(","))) for corner in line.split()]
    kept = {values["macs"] for values in (best["metrics"] for best in search_details(front)["best"])}
    assert len(corners) == 2 * len(kept) - 1
    for (x, y), (right, above) in itertools.pairwise(corners):
        assert (x == right and above <= y) or (y == above and right >= x)  # across or up, never aslant


def test_a_search_of_one_objective_has_no_hypervolume(tmp_path: Path) -> None:
    result = table(tmp_path)
    assert search_details(result)["hypervolume"] is None
    assert "hypervolume" not in page(result).lower().replace("hypervolume: null", "")
    assert not (result.directory / "tensorboard").exists()


def test_a_search_over_a_table_ends_with_the_best_rows_figures(front: RunResult) -> None:
    top1, macs = search_details(front)["best"][0]["values"]
    assert front.report["baseline"] == front.report["final"]
    assert (front.report["final"]["top1"], front.report["final"]["macs"]) == (top1, macs)
    assert front.summary.startswith("found  MACs ") and "→" not in front.summary
    assert (front.directory / "tensorboard").is_dir()


def test_columns_of_its_own_are_in_the_closing_table_too(tmp_path: Path) -> None:
    evaluator = {"kind": "tabular", "metrics": {"speed": "accuracy"}}
    result = table(tmp_path, evaluator=evaluator, objective={"maximize": ["speed"]})
    best = search_details(result)["best"][0]["metrics"]["speed"]
    assert closing_table(result.report).splitlines()[2:] == [f"speed{best:>{len('  what was found')}.1f}"]
    assert 'id="models"' not in page(result)


def test_one_model_is_exported_and_timed_once(network: RunResult) -> None:
    report = network.report
    assert report["baseline"] == report["final"]
    assert report["final"]["onnx_bytes"] and report["final"]["latency_ms"]["p50"]
    assert report["latency_ratio"] is None and report["efficiency"] is None
    assert [path.name for path in network.directory.rglob("*.onnx")] == ["model.onnx"]
    samples = json.loads((network.directory / "stages" / "04-latency" / "samples.json").read_text())
    assert list(samples) == ["final_ms"]


def test_one_model_has_one_column_and_a_line_without_arrows(network: RunResult) -> None:
    title, _, *rows = closing_table(network.report).splitlines()
    assert title.split("  ")[-1].strip() == "what was found"
    assert all(len(re.split(r"\s{2,}", row)) == 2 for row in rows)
    latency = r"latency \S+ ms(?: of CPU time)?"
    assert re.fullmatch(rf"found  MACs \S+ K  params \S+ K  top-1 \S+  {latency}  \S+", network.summary)
    text = page(network)
    assert "<h2>What was found</h2>" in text
    for word in ("Baseline", "Both models", "both models", "×", "±0"):
        assert word not in text.split("<main>")[1].split('id="stages"')[0]
    (row,) = compare_runs([network.directory])
    assert row.macs is not None and row.macs_change is None and row.change is None and row.latency_ratio is None


def test_without_a_package_for_tensorboard_nothing_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise InputError("search.tensorboard: absent")

    monkeypatch.setattr(tensorboard, "writer_class", absent)
    monkeypatch.setattr("compress.runs.stages.search.writer_class", absent)
    with pytest.raises(InputError, match=r"search\.tensorboard: absent"):
        table(tmp_path, tensorboard=True)
    assert not (tmp_path / "run").exists()
