"""What README.md says: its commands run as they stand on the page, its recipes are valid, its names exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
import yaml
from pages import ROOT, blocks, commands
from typer.testing import CliRunner

import compress
from compress.cli import app
from compress.runs.catalog import listing
from evaluators.cost import count_macs
from search.config import SearchConfig

PAGES = [page.read_text(encoding="utf-8") for page in pages.PAGES]
README = PAGES[0]

NOT_HERE = {
    "pip install": "the run of CI installs so before it tests",
    "python3 -m venv": "the run of CI makes its own",
    "pytest": "this is one of its tests",
    "ruff": "the run of CI does it",
    "bash .ci/run": "this is part of it",
    "bash .ci/lowest": "the run of CI does it in another environment",
}
"""Beginnings of the commands that are not run here, and why; those that run a shipped recipe: see test_recipes."""


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    every = [command for page in PAGES for command in commands(page) if not command.startswith(tuple(NOT_HERE))]
    left = [command for command in every if pages.shipped(command) is None]
    assert len(left) > 8
    for command in left:
        assert command.startswith("compress "), command
        result = CliRunner().invoke(app, pages.quicker(command, tmp_path))
        assert result.exit_code == 0, (command, result.output)
        assert result.stdout.strip(), command


def test_every_reason_is_needed() -> None:
    every = [command for page in PAGES for command in commands(page)]
    assert [start for start in NOT_HERE if not any(command.startswith(start) for command in every)] == []


def test_the_recipe_on_the_page_is_valid(tmp_path: Path) -> None:
    whole, search, supernet = blocks(README, "yaml")
    for part in ("train", "val"):
        (tmp_path / "flowers" / part).mkdir(parents=True)
    (tmp_path / "mine.yaml").write_text(whole.replace("/data/flowers", str(tmp_path / "flowers")))
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "mine.yaml")])
    assert result.exit_code == 0, result.output
    SearchConfig.model_validate(yaml.safe_load(search)["search"])
    (tmp_path / "shared.yaml").write_text(f"version: 1\nname: shared\ndata: {{name: digits}}\n{supernet}")
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "shared.yaml")])
    assert result.exit_code == 0, result.output


def test_the_example_of_spaces_runs() -> None:
    *_, example = blocks(README, "python")
    found: dict[str, object] = {}
    exec(example, found)
    assert {"network", "small"} <= found.keys()


@pytest.mark.slow
def test_the_example_of_a_run_and_a_plan_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, *_ = blocks(README, "python")
    quick = {**pages.overrides("dimap_swin_channels"), "latency": None}
    whole = compress.run

    def run(recipe: str, overrides: dict[str, Any]) -> Any:
        return whole(recipe, overrides | quick)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compress, "run", run)
    found: dict[str, Any] = {"example_inputs": torch.randn(2, 3, 32, 32)}
    exec(example, found)
    assert count_macs(found["small"], found["example_inputs"]) < count_macs(found["model"], found["example_inputs"])


def test_every_extra_that_a_page_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name for page in PAGES for name in re.findall(r"compress\[([\w-]+)\]", page)}
    assert named and named <= extras["optional-dependencies"].keys()


def test_every_recipe_and_space_is_in_a_table() -> None:
    tables = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    listed = tables.replace("{tiny,small,base}", "tiny") + tables.replace("{tiny,small,base}", "small")
    listed += tables.replace("{tiny,small,base}", "base")
    assert [name for kind in ("recipes", "spaces") for name in listing(kind) if f"`{name}`" not in listed] == []


def test_every_file_that_a_page_names_exists() -> None:
    folders = ("compress", "search", "spaces", "evaluators", "recipes", "benchmarks", "tests", "docs", ".ci")
    files = [*ROOT.iterdir(), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    there = [f"/{path.relative_to(ROOT).as_posix()}" for path in files]
    not_ours = {"best1/", "stages/01-search/", "train/CLASS/", "val/CLASS/"}
    named = {name for page in PAGES for name in re.findall(r"`([\w./-]+(?:\.py|\.csv|\.md|/))`", page)} - not_ours
    examples = set(re.findall(r"such as `([\w/]+\.py)`", PAGES[1]))
    lost = [name for name in sorted(named - examples) if not any(p.endswith(f"/{name.rstrip('/')}") for p in there)]
    assert len(named) > 20 and lost == []
