"""`compress rank` and the section `rank`: one training serves many rankings, and what was scored is kept."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from compress.cli import app
from compress.core.errors import Diverged
from compress.runs.recipe import load_recipe
from compress.runs.stage import acts_of
from search.supernets import alone as alone_file
from search.supernets.evaluator import SupernetEvaluator
from spaces.registry import open_preset

RECIPE = """
version: 1
name: tiny
data: {name: digits, image_size: 16, batch_size: 64, limit_train: 200, limit_test: 100}
supernet: {method: single_path, epochs: 1, lr: 0.05, holdout: 0.5}
search:
  space: {name: mobilenetv3, preset: tiny}
  strategy: {name: random}
  objective: {maximize: [top1]}
  evaluator: {kind: supernet}
  trials: 2
train: {epochs: 1}
"""
FEW = ["--set", "rank.recalibrate=2", "--architectures", "6"]


def rank(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["rank", "--quiet", *map(str, words)])


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def details_of(run: Path) -> dict[str, Any]:
    (path,) = run.glob("stages/*-rank/details.json")
    found: dict[str, Any] = json.loads(path.read_text())["rank"]
    return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def ranked(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished ranking without true values; to be copied."""
    out = tmp_path_factory.mktemp("ranked") / "run"
    result = rank("-r", recipe, "--out", out, *FEW, "--scores", out.parent / "scores.csv")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def run(ranked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ranked, tmp_path / "run"))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the architectures that are run from now on."""
    seen: list[Any] = []
    whole = SupernetEvaluator.evaluate

    def evaluate(self: SupernetEvaluator, arch: Any, *others: Any) -> Any:
        seen.append(arch)
        return whole(self, arch, *others)

    monkeypatch.setattr(SupernetEvaluator, "evaluate", evaluate)
    return seen


def truth_from(scores: Path, path: Path, turned: bool = False) -> Path:
    """Write a table in which the networks are as good as their scores say, or the other way round."""
    rows = rows_of(scores)
    values = [-float(row["loss"]) * (-1 if turned else 1) for row in rows]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("code", "acc"), *((row["code"], v) for row, v in zip(rows, values, strict=True))])
    return path


def test_the_scores_are_a_table_that_the_space_reads_and_later_sections_are_not_run(ranked: Path) -> None:
    rows = rows_of(ranked.parent / "scores.csv")
    assert (ranked.parent / "scores.csv").read_bytes() == (ranked / "rank" / "scores.csv").read_bytes()
    assert len(rows) == 6
    assert {"top1", "loss", "macs", "params", "code"} <= rows[0].keys()
    space = open_preset("mobilenetv3", "tiny")[0]
    space.default_task = space.task(10, 3, 16)
    for row in rows:
        assert space.cost(space.parse(json.loads(row["code"])))["params"] == float(row["params"])
    scores = [float(row["top1"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [stage["name"] for stage in report_of(ranked)["stages"]] == ["supernet", "rank"]
    assert report_of(ranked)["rank"]["proxies"] == []


def test_a_table_is_held_against_what_was_scored_before(run: Path, recipe: Path, evaluated: list[Any]) -> None:
    table = truth_from(run / "rank" / "scores.csv", run.parent / "truth.csv")
    flags = ["-r", recipe, "--out", run, "--resume", "--set", "rank.recalibrate=2", "--set", "rank.score=loss"]
    result = rank(*flags, "--truth", table)
    assert result.exit_code == 0, result.output
    assert evaluated == [] and details_of(run)["scored"] == 0
    supernet, *others = report_of(run)["rank"]["proxies"]
    assert supernet["spearman"] == pytest.approx(1) and supernet["architectures"] == 6
    assert [each["name"] for each in others] == ["MACs alone", "parameters alone"]
    assert "Spearman 1.000" in result.stdout.splitlines()[-1]
    assert "MACs alone" in result.stdout
    page = (run / "report.html").read_text()
    assert page.count(": loss −") + page.count(": loss 2") == 12  # dots of six networks, and of the six best
    assert "Kendall tau-b" in page
    turned = truth_from(run / "rank" / "scores.csv", run.parent / "other.csv", turned=True)
    assert rank(*flags, "--truth", turned).exit_code == 0
    assert report_of(run)["rank"]["proxies"][0]["spearman"] == pytest.approx(-1)
    assert any("ranks worse" in note for note in report_of(run)["rank"]["notes"])


def test_more_networks_are_scored_in_addition(run: Path, recipe: Path, evaluated: list[Any]) -> None:
    flags = ["-r", recipe, "--out", run, "--set", "rank.recalibrate=2", "--resume"]
    assert rank(*flags, "--architectures", "8").exit_code == 0
    assert len(evaluated) == 2
    assert rank(*flags, "--architectures", "8").exit_code == 0
    assert len(evaluated) == 2


def test_a_ranking_that_was_killed_goes_on(
    ranked: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["-r", recipe, "--set", f"rank.weights={ranked}", "--out", tmp_path / "run", *FEW]
    whole, scored = SupernetEvaluator.evaluate, []

    def evaluate(self: SupernetEvaluator, arch: Any, *others: Any) -> Any:
        if len(scored) == 4:
            raise KeyboardInterrupt
        scored.append(arch)
        return whole(self, arch, *others)

    monkeypatch.setattr(SupernetEvaluator, "evaluate", evaluate)
    stopped = rank(*flags)
    assert stopped.exit_code == 130 and "--architectures 6 --resume" in stopped.stderr
    assert not (tmp_path / "run" / "rank" / "scores.csv").exists()
    monkeypatch.setattr(SupernetEvaluator, "evaluate", whole)
    assert rank(*flags, "--resume").exit_code == 0
    assert details_of(tmp_path / "run")["scored"] == 2
    assert rows_of(tmp_path / "run" / "rank" / "scores.csv") == rows_of(ranked / "rank" / "scores.csv")


def test_the_supernet_of_a_whole_run_is_used_again_and_the_run_stays(run: Path, recipe: Path) -> None:
    whole = load_recipe(recipe)
    whole.save(run / "recipe.yaml")  # as `compress run` would have left it
    shutil.rmtree(run / "rank")
    before = (run / "report.json").read_bytes()
    assert rank("-r", recipe, "--out", run, *FEW).exit_code == 0
    assert [stage["name"] for stage in report_of(run / "ranking")["stages"]] == ["rank"]
    assert (run / "report.json").read_bytes() == before
    refused = rank("-r", recipe, "--out", run, *FEW, "--set", "supernet.epochs=3")
    assert refused.exit_code == 2 and "has trained another supernet: supernet.epochs differ" in refused.stderr


def test_networks_are_trained_alone_where_there_is_no_table(
    run: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["-r", recipe, "--out", run, *FEW, "--resume"]
    whole, trained = alone_file.fit, []

    def fit(model: Any, *others: Any, **settings: Any) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(model)
        return whole(model, *others, **settings)

    monkeypatch.setattr(alone_file, "fit", fit)
    assert rank(*flags, "--against", "3").exit_code == 130
    monkeypatch.setattr(alone_file, "fit", lambda *a, **k: trained.append(a[0]) or whole(*a, **k))
    result = rank(*flags, "--against", "3")
    assert result.exit_code == 0, result.output
    assert len(trained) == 3
    assert len(list((run / "rank" / "alone").glob("*.safetensors"))) == 3
    rows = rows_of(run / "rank" / "alone.csv")
    assert len(rows) == 3 and {"top1", "loss", "macs"} <= rows[0].keys()
    assert report_of(run)["rank"]["truth"]["networks"] == 3
    assert any("3 of the 6" in note for note in report_of(run)["rank"]["notes"])
    assert rank(*flags, "--against", "4").exit_code == 0
    assert len(trained) == 4


def test_networks_that_diverge_alone_count_as_the_worst(
    run: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise Diverged("the loss is nan")

    monkeypatch.setattr(alone_file, "fit", fit)
    assert rank("-r", recipe, "--out", run, *FEW, "--resume", "--against", "3").exit_code == 0
    supernet = report_of(run)["rank"]["proxies"][0]
    assert supernet["spearman"] is None
    assert [row["top1"] for row in rows_of(run / "rank" / "alone.csv")] == ["0.0"] * 3


def test_a_score_that_is_no_number_is_the_worst_and_null(
    ranked: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SupernetEvaluator.evaluate
    scored: list[Any] = []

    def evaluate(self: SupernetEvaluator, arch: Any, *others: Any) -> Any:
        scored.append(arch)
        return whole(self, arch, *others) | ({"top1": float("nan")} if len(scored) == 1 else {})

    monkeypatch.setattr(SupernetEvaluator, "evaluate", evaluate)
    table = truth_from(ranked / "rank" / "scores.csv", tmp_path / "truth.csv")
    flags = ["--set", f"rank.weights={ranked}", "--set", "rank.recalibrate=2", "--out", tmp_path / "run"]
    result = rank("-r", recipe, *flags, "--truth", table)
    assert result.exit_code == 0, result.output
    assert report_of(tmp_path / "run")["rank"]["proxies"][0]["not_finite"] == 1
    assert details_of(tmp_path / "run")["best"][-1]["score"] is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--truth", "no.csv"], "rank.truth: "),
        (["--truth", "TABLE", "--set", "rank.metric=accuracy"], "no column 'accuracy'; allowed: code, acc"),
        (["--truth", "TABLE", "--set", "search.space={name: nats_size}"], "does not say which networks of nats_size"),
        (["--truth", "TABLE", "--against", "4"], "give one of both"),
        (["--against", "2"], "allowed 3 or more"),
        (["--against", "3", "--set", "train=null"], "rank.train: missing"),
        (["--set", "supernet=null"], "rank.weights: missing, and the recipe trains no supernet"),
        (["--set", "data={name: none}"], "supernet: needs images"),
        (["--set", "rank.weights=nowhere"], "rank.weights: 'nowhere' holds no trained supernet"),
        (["--set", "rank.weights=RUN", "--set", "search.space.options={se: searched}"], "trained for another space"),
        (["--set", "rank.weights=RUN", "--set", "rank.score=top2"], "rank.score: nothing measures 'top2'"),
        (["--set", "rank.weights=RUN", "--against", "3", "--set", "rank.metric=f1"], "rank.metric: no metric"),
        (["--scores", "/dev/null/scores.csv"], "rank.scores"),
        (["--truth", "TABLE", "--scores", "TABLE"], "is the table of true values, which would be lost"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_before_anything_is_trained(
    flags: list[str], said: str, ranked: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any) -> None:
        raise AssertionError("was trained")

    monkeypatch.setattr("search.supernets.method.SupernetMethod.train", train)
    table = truth_from(ranked / "rank" / "scores.csv", tmp_path / "truth.csv")
    words = [flag.replace("TABLE", str(table)).replace("RUN", str(ranked)) for flag in flags]
    result = rank("-r", recipe, "--out", tmp_path / "run", *words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_in_a_whole_run_it_is_a_stage_between_supernet_and_search(recipe: Path) -> None:
    whole = load_recipe(recipe, {"rank": {}})
    assert [act.name for act in acts_of(whole)] == ["supernet", "rank", "search", "dense"]
