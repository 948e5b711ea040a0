"""What CONTRIBUTING.md says: its examples work as they stand on the page, and imports point where it says."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("compress", "search", "spaces", "evaluators")
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

USE = """
import random
import optuna
import torch
from typer.testing import CliRunner

from compress.cli import app
from compress.distill import losses
from search.strategies import make_sampler
from search.strategies.one_step import OneStepStrategy
from search.strategies.strategy import StrategyContext
from spaces.registry import create

optuna.logging.disable_default_handler()
listed = lambda kind: CliRunner().invoke(app, ["ls", kind]).stdout.split()
assert "relative" in listed("criteria") and "mse" in listed("losses")
assert "ladder" in listed("spaces") and "one_step" in listed("strategies")

changes = ["prune.criterion=relative", "finetune.distill={loss: mse, weight: 0.5}"]
result = CliRunner().invoke(app, ["validate", "dimap_swin.yaml", *(f"--set={change}" for change in changes)])
assert result.exit_code == 0, result.output
one, two = torch.zeros(2, 3), torch.ones(2, 3)
assert losses.get("mse")(weight=0.5).combine(one, two, torch.tensor(1.0)) == 1.5

space = create("ladder", {"rungs": 3})
assert space.count() == 3 + 9 + 27
context = StrategyContext(space, ("maximize",), trials=20, seed=0)
study = optuna.create_study(sampler=make_sampler(OneStepStrategy(name="one_step"), context), direction="maximize")
study.optimize(lambda trial: -space.cost(space.suggest(trial), 10, 3, 8)["params"], n_trials=20)
assert study.best_params == {"depth": 1, "rung1.width": 16}, study.best_params
arch = space.check(study.best_params)
assert space.build(arch, 10, 3, 8)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
"""


def test_the_examples_work_as_they_stand_on_the_page(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    files = re.findall(r"such as `([\w/]+\.py)`.*?```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(files) == PAGE.count("```python") == 4
    for name, code in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(code, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", USE], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def imports(file: Path) -> set[str]:
    """Return the modules of ours that a file imports, at its top or inside functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("leaf", ["errors", "config", "progress", "modes", "registry", "atomic", "environment"])
def test_what_may_be_used_everywhere_imports_nothing_above_it(leaf: str) -> None:
    assert f"`{leaf}`" in PAGE or f"`compress.{leaf}`" in PAGE
    allowed = {"compress.errors"} if leaf in ("registry", "atomic", "environment") else set()
    assert imports(ROOT / "compress" / f"{leaf}.py") <= allowed


@pytest.mark.parametrize(
    ("package", "not_above"),
    [
        ("evaluators", "search"),
        ("spaces", "search"),
        ("search", "compress.(?!errors|config|progress|environment|registry|atomic)"),
    ],
)
def test_imports_point_one_way(package: str, not_above: str) -> None:
    found = {name for file in (ROOT / package).rglob("*.py") for name in imports(file)}
    assert found and [name for name in sorted(found) if re.match(not_above, name)] == []
