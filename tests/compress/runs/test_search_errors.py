"""What is wrong with a search is one sentence that names key, value and what is allowed; nothing stays behind."""

from __future__ import annotations

import copy
import gzip
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from compress.cli import app
from compress.core.errors import InputError
from compress.runs.recipe import load_recipe

runner = CliRunner()
TABLE: dict[str, Any] = {
    "version": 1,
    "name": "it",
    "data": {"name": "none"},
    "search": {
        "space": {"name": "table", "options": {"path": "t.csv", "decisions": ["a", "b", "c"]}},
        "strategy": {"name": "random"},
        "evaluator": {"kind": "tabular", "metrics": {"top1": "accuracy"}, "costs": {"macs": "cost"}},
        "trials": 8,
    },
}
NETWORKS: dict[str, Any] = {
    "version": 1,
    "name": "it",
    "data": {"name": "digits", "image_size": 32},
    "search": {
        "space": {"name": "mobilenetv3", "preset": "tiny"},
        "strategy": {"name": "random"},
        "evaluator": {"kind": "train", "train": {"epochs": 1}},
        "trials": 4,
    },
}
TWO = {"maximize": ["top1"], "minimize": ["macs"]}
HEADER = "a,b,c,accuracy,cost\n"
ROWS = "".join(
    f"{a},{b},{c},{90 + a - (b - 1) ** 2 + 0.1 * c},{10 * (a + b + c)}\n"
    for a, b, c in itertools.product(range(3), repeat=3)
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(HEADER + ROWS)
    return tmp_path


def changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `recipe` with dotted keys of its section `search` changed."""
    recipe = copy.deepcopy(recipe)
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = recipe["search"]
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return recipe


def search(recipe: dict[str, Any], *flags: str) -> Any:
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    return runner.invoke(app, ["search", "--recipe", "r.yaml", "--quiet", "--out", "run", "--device", "cpu", *flags])


def validate(recipe: dict[str, Any]) -> Any:
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    return runner.invoke(app, ["validate", "r.yaml"])


def is_refused(result: Any, *words: str) -> None:
    assert result.exit_code == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


FOUND_BY_VALIDATE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown strategy": (
        {"strategy.name": "regularised_evolution"},
        ("search.strategy.name", "did you mean 'regularized_evolution'"),
    ),
    "unknown space": ({"space.name": "tabel"}, ("search.space.name", "got 'tabel'", "did you mean 'table'")),
    "unknown preset": ({"space.preset": "tiny"}, ("search.space.preset", "space table has no such preset")),
    "unknown option of a strategy": (
        {"strategy": {"name": "regularized_evolution", "populaton": 5}},
        ("search.strategy.populaton", "did you mean 'population'"),
    ),
    "unknown argument of a sampler": (
        {"strategy": {"name": "tpe", "options": {"n_startup_trial": 5}}},
        ("search.strategy.options", "n_startup_trial: TPESampler takes no such", "did you mean 'n_startup_trials'"),
    ),
    "argument of a wrong type": (
        {"strategy": {"name": "tpe", "options": {"n_startup_trials": "many"}}},
        ("search.strategy.options", "n_startup_trials: wrong type; got 'many'; allowed a whole number"),
    ),
    "unknown argument of a pruner": (
        {"pruner": {"name": "asha", "options": {"reduction_facter": 3}}},
        ("search.pruner.options", "did you mean 'reduction_factor'"),
    ),
    "reward without target": (
        {"objective": {"reward": {"metric": "macs", "target": 0}}},
        ("search.objective.reward.target", "got 0", "above 0"),
    ),
    "negative target": (
        {"objective": {"reward": {"metric": "macs", "target": -1.0}}},
        ("search.objective.reward.target", "got -1.0", "above 0"),
    ),
    "no trials": ({"trials": 0}, ("search.trials", "got 0", "at least 1")),
    "unknown executor": ({"executor": {"kind": "slurm"}}, ("search.executor.kind", '"slurm"', "local, ray")),
    "unknown evaluator": ({"evaluator": {"kind": "tabluar"}}, ("search.evaluator.kind", "did you mean 'tabular'")),
    "constraint without limit": ({"objective.constraints": {"macs": {}}}, ("constraints.macs", "needs min or max")),
    "pruner with two objectives": (
        {"objective": TWO, "pruner": {"name": "asha"}},
        ("search: pruner works with one objective",),
    ),
    **{
        f"two objectives for {name}": (
            {"objective": TWO, "strategy.name": name},
            (f"strategy {name} searches for one value; got 2 in objective (top1, macs)", "nsga2"),
        )
        for name in ("regularized_evolution", "auto", "ppo", "reinforce", "local_search", "netadapt", "cmaes")
    },
    "unknown metric": (
        {"objective": {"maximize": ["accuracy"]}},
        ("nothing measures 'accuracy'", "macs, params, top1"),
    ),
    "constraint on no metric": (
        {"objective.constraints": {"mac": {"max": 3}}},
        ("'mac'", "did you mean 'macs'"),
    ),
}


@pytest.mark.parametrize("case", FOUND_BY_VALIDATE)
def test_what_a_recipe_alone_shows_is_found_by_validate_and_by_search(case: str, folder: Path) -> None:
    changes, words = FOUND_BY_VALIDATE[case]
    for ask in (validate, search):
        is_refused(ask(changed(TABLE, changes)), "r.yaml:", *words)
    assert not (folder / "run").exists()


FOUND_BY_SEARCH: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unsatisfiable constraint": (
        {"objective.constraints": {"macs": {"max": -1}}},
        ("search.objective.constraints: no architecture of space table keeps them", "macs 0 is above -1"),
    ),
    "column of the space": ({"space.options.decisions": ["a", "d"]}, ("no column 'd'", "a, b, c, accuracy, cost")),
    "column of a metric": ({"evaluator.metrics": {"top1": "acuracy"}}, ("'acuracy'", "did you mean 'accuracy'")),
    "column of a cost": ({"evaluator.costs": {"macs": "costs"}}, ("no column 'costs'", "did you mean 'cost'")),
    "a decision twice": ({"space.options.decisions": ["a", "a"]}, ("search.space", "decisions has 'a' twice")),
    "no file": ({"space.options.path": "no.csv"}, ("search.space: no.csv: cannot be read", "No such file")),
    "a folder": ({"space.options.path": "."}, ("search.space: .: cannot be read", "Is a directory")),
    "cost that tables lack": ({"objective.constraints": {"params": {"max": 3}}}, ("search.evaluator.costs",)),
    "database": (
        {"executor": {"kind": "local", "storage": "sqlite:////no/such/x.db"}},
        ("search.executor.storage: cannot open",),
    ),
    "evaluator that needs images": (
        {"evaluator": {"kind": "train", "train": {"epochs": 1}}},
        ("search.evaluator: kind train needs images",),
    ),
    "value that a sampler refuses": (
        {"strategy": {"name": "nsga2", "options": {"population_size": 1}}},
        ("search.strategy.options: NSGAIISampler refuses", "greater than or equal to 2"),
    ),
    "grid over an unknown choice": (
        {"strategy": {"name": "grid", "options": {"search_space": {"a": [7]}}}},
        ("search.strategy.options.search_space.a: unknown choice; got 7; allowed [0, 1, 2]",),
    ),
}


@pytest.mark.parametrize("case", FOUND_BY_SEARCH)
def test_what_needs_a_look_at_files_is_found_before_anything_is_evaluated(case: str, folder: Path) -> None:
    changes, words = FOUND_BY_SEARCH[case]
    is_refused(search(changed(TABLE, changes)), *words)
    assert not (folder / "run").exists()


def test_what_is_found_late_costs_no_finished_trial(folder: Path) -> None:
    reward = {"objective.reward": {"metric": "macs", "target": 1.0}, "strategy.name": "grid", "trials": 27}
    result = search(changed(TABLE, reward))
    assert result.exit_code == 1
    assert "search.objective.reward.metric: macs has to be above 0; got 0" in result.stderr
    assert "--resume" in result.stderr
    assert (folder / "run" / "study.journal").stat().st_size > 0


PACKED = gzip.compress((HEADER + ROWS).encode())
BROKEN_TABLES = {
    "empty": (b"", "a header and at least one row"),
    "header only": (HEADER.encode(), "a header and at least one row"),
    "binary": (bytes(range(256)) * 4, "cannot be read as csv"),
    "ragged": (HEADER.encode() + b"1,2,3\n", ":2: 3 fields; the header has 5"),
    "text in a metric": ((HEADER + ROWS).replace(",90.0,", ",high,", 1).encode(), "accuracy: not a number; got 'high'"),
    "infinite metric": ((HEADER + ROWS).replace(",90.0,", ",inf,", 1).encode(), "not a finite number; got 'inf'"),
    "empty decision": (HEADER.encode() + b"1,,3,4,5\n", ":2: b: empty; every row needs a choice"),
    "empty metric": (HEADER.encode() + b"1,2,3,,5\n", "the table has no top1"),
    "two columns of a name": (b"a,b,c,accuracy,accuracy,cost\n1,2,3,4,5,6\n", "two columns are called 'accuracy'"),
    "not gzipped": (b"a,b\n1,2\n", "Not a gzipped file"),
    "cut off": (PACKED[: len(PACKED) // 2], "ended before the end-of-stream"),
    "damaged": (PACKED[:30] + bytes(40) + PACKED[70:], "cannot be read as csv"),
}


@pytest.mark.parametrize("case", BROKEN_TABLES)
def test_a_broken_table_is_named_with_the_place_in_it(case: str, folder: Path) -> None:
    content, words = BROKEN_TABLES[case]
    name = "x.csv.gz" if case in ("not gzipped", "cut off", "damaged") else "x.csv"
    (folder / name).write_bytes(content)
    is_refused(search(changed(TABLE, {"space.options.path": name})), name, words)
    assert not (folder / "run").exists()


def test_a_byte_order_mark_and_blank_lines_at_the_end_are_no_fault(folder: Path) -> None:
    (folder / "t.csv").write_text("\ufeff" + HEADER + ROWS + "\n\n", encoding="utf-8")
    assert search(TABLE).exit_code == 0


def test_networks_that_cannot_be_small_enough_are_refused_before_any_is_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluators.candidates.train.TrainEvaluator.evaluate", lambda *_: pytest.fail("trained"))
    result = search(changed(NETWORKS, {"objective.constraints": {"params": {"max": 10}}}))
    is_refused(result, "search.objective.constraints: no architecture of space mobilenetv3", "is above 10")
    assert not (folder / "run").exists()


def test_latency_needs_its_section(folder: Path) -> None:
    result = search(changed(NETWORKS, {"objective.reward": {"metric": "latency_ms", "target": 1.0}}))
    is_refused(result, "search.objective: nothing measures 'latency_ms'", "give search.latency")
    assert not (folder / "run").exists()


def test_ray_that_is_not_installed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    is_refused(search(changed(TABLE, {"executor": {"kind": "ray"}})), "search.executor.kind", "pip install")
    assert not (folder / "run").exists()


@pytest.fixture
def interrupted(folder: Path) -> Path:
    """Return the directory of a search whose process ended right after its last trial."""
    assert search(TABLE).exit_code == 0
    shutil.rmtree(folder / "run" / "stages")
    (folder / "run" / "report.json").unlink()
    return folder / "run"


def journal_with(content: bytes) -> Callable[[Path], Any]:
    return lambda run: (run / "study.journal").write_bytes(content)


SPOILT: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "another file": (journal_with(b"not a journal\nat all\n"), {}, "not a journal of Optuna's, or damaged"),
    "other JSON": (journal_with(b'{"a": 1}\n[1]\n'), {}, "not a journal of Optuna's, or damaged"),
    "binary": (journal_with(bytes(range(256))), {}, "not a journal of Optuna's, or damaged"),
    "no recipe": (lambda run: (run / "recipe.yaml").write_text("{"), {}, "--resume  run/recipe.yaml cannot be read"),
    "other strategy": (lambda run: None, {"strategy.name": "auto"}, "another recipe: search.strategy.name"),
    "fewer trials": (lambda run: None, {"trials": 5}, "search.trials"),
    "other table": (
        lambda run: Path("t.csv").write_text(HEADER + ROWS.replace("2,", "7,")),
        {},
        "search.space: table is not what it was when study it began",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_search_that_cannot_go_on_says_why_and_leaves_the_run_as_it_is(case: str, interrupted: Path) -> None:
    spoil, changes, words = SPOILT[case]
    spoil(interrupted)
    journal, recipe = interrupted / "study.journal", interrupted / "recipe.yaml"
    trials, given = journal.read_bytes().count(b'"op_code":4'), recipe.read_bytes()
    is_refused(search(changed(TABLE, changes), "--resume"), words, "--out")
    assert journal.read_bytes().count(b'"op_code":4') == trials
    assert recipe.read_bytes() == given
    assert not (interrupted / "stages").exists()


def test_a_search_that_never_began_begins_with_resume(folder: Path) -> None:
    assert search(TABLE, "--resume").exit_code == 0
    assert (folder / "run" / "report.json").is_file()


def test_a_finished_search_is_shown_again_and_not_repeated(folder: Path) -> None:
    assert search(TABLE).exit_code == 0
    before = (folder / "run" / "study.journal").read_bytes()
    again = search(TABLE, "--resume")
    assert again.exit_code == 0
    assert (folder / "run" / "study.journal").read_bytes() == before
    is_refused(search(TABLE), "holds a finished run", "--resume")


def test_a_script_that_its_own_workers_would_run_again_is_told_how_to_begin(folder: Path) -> None:
    """The standard library imports the script in every worker; told otherwise, each would call the run its own."""
    recipe = copy.deepcopy(TABLE)
    recipe["search"]["executor"] = {"kind": "local", "workers": 2}
    (folder / "it.yaml").write_text(yaml.safe_dump(recipe))
    script = folder / "bare.py"
    script.write_text('import compress\n\ncompress.run("it.yaml", out="run")\n')
    found = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "put what runs it under if __name__ == '__main__':" in found.stderr
    assert "another process is running" not in found.stderr


@pytest.mark.parametrize(
    ("recipe", "changes", "problem"),
    [
        ("spos_mobilenetv3_digits.yaml", {"search.objective.maximize": ["topl"]}, "did you mean 'top5'"),
        (
            "spos_mobilenetv3_digits.yaml",
            {"search.objective.constraints": {"latency_ms": {"max": 1}}},
            "search.latency",
        ),
        ("bms_pooling_digits.yaml", {"search.objective.maximize": ["topl"]}, "did you mean 'top5'"),
        ("bossnas_nats_digits.yaml", {"search.objective.minimize": ["top1"]}, "allowed: bootstrap_loss, macs, params"),
    ],
)
def test_what_a_supernet_does_not_rate_is_told_before_it_is_trained(
    recipe: str, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=f"search.objective: nothing measures .*{problem}"):
        load_recipe(recipe, changes)


def test_what_another_run_s_supernet_rates_is_not_known_before(tmp_path: Path) -> None:
    given = {"supernet": None, "search.evaluator.weights": str(tmp_path), "search.objective.maximize": ["other"]}
    load_recipe("spos_mobilenetv3_digits.yaml", given)
