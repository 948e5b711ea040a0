"""What a package outside the repository brings is used from a recipe like what is shipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CRITERION = '''
"""A criterion, which imports the package whose registry it is in."""

import compress.criteria
import compress.runs.recipe  # everything may be imported: nothing is asked of a registry meanwhile
from compress.criteria import WeightCriterion, weight_criteria


@weight_criteria.register("acme_relative")
class Relative(WeightCriterion):
    """Small relative to the layer's mean."""

    def scores(self, weight, generator):
        """Return |w| / mean |w|."""
        return weight.abs() / weight.abs().mean()
'''
SPACE = '''
"""A space: how wide two convolutions are."""

from torch import nn

from compress.core.config import Config
from spaces.architecture import Decision
from spaces.registry import spaces
from spaces.space import Space


@spaces.register("acme_width")
class WidthSpace(Space):
    """Two convolutions of 4 or 8 channels."""

    Config = Config

    def _decisions(self):
        return [Decision("width", (4, 8))]

    def _build(self, arch, task):
        width = arch.number("width")
        convs = [nn.Conv2d(task.in_chans, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, task.num_classes))
'''
RECIPE = """
version: 1
name: acme
model: {source: space, name: acme_width, kwargs: {arch: {width: 4}}}
data: {name: digits, image_size: 8, limit_train: 100, limit_test: 50}
train: {epochs: 1}
prune: {kind: weights, criterion: acme_relative, sparsity: 0.5, modules: {convolutions: ["2.weight"]}}
"""


def install(folder: Path, modules: dict[str, str], points: dict[str, str]) -> dict[str, str]:
    """Lay out a package `acme` as an installer does; return the environment of a process that has it."""
    (folder / "acme").mkdir()
    (folder / "acme" / "__init__.py").write_text('"""Plug-ins of a third party."""\n')
    for name, source in modules.items():
        (folder / "acme" / f"{name}.py").write_text(source)
    info = folder / "acme_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugins\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[compress.plugins]\n{lines}")
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def compress(arguments: list[str], environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compress.cli", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_recipe_uses_what_another_package_brings(tmp_path: Path) -> None:
    points = {"criterion": "acme.criterion", "space": "acme.space"}
    environment = install(tmp_path, {"criterion": CRITERION, "space": SPACE}, points)
    (tmp_path / "acme.yaml").write_text(RECIPE)
    assert "acme_width" in json.loads(compress(["ls", "spaces", "--json"], environment, tmp_path).stdout)
    done = compress(["run", "--recipe", "acme.yaml", "--quiet", "--json"], environment, tmp_path)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "runs" / "acme" / "report.json").read_text())
    assert report["final"]["nonzero_params"] < report["baseline"]["nonzero_params"]
    wrong = compress(["validate", "acme.yaml", "--set", "prune.criterion=acme_relativ"], environment, tmp_path)
    assert wrong.returncode == 2 and "did you mean 'acme_relative'?" in wrong.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        (CRITERION.replace("acme_relative", "magnitude"), "'magnitude' is taken by compress.criteria.magnitude"),
        ("from spaces.registry import spaces\nspaces.register('x')(dict)", "space 'x' is <class 'dict'>, no subclass"),
    ],
)
def test_a_broken_plug_in_is_one_sentence_that_names_its_package(tmp_path: Path, source: str, says: str) -> None:
    environment = install(tmp_path, {"broken": source}, {"mine": "acme.broken"})
    done = compress(["validate", "dimap_swin.yaml"], environment, tmp_path)
    (sentence,) = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert sentence.startswith("the plug-in 'mine' (acme.broken) of acme-plugins cannot be imported: ")
    assert says in sentence
