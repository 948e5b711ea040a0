"""What a package outside the repository brings is used from a recipe like what is shipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, task.num_outputs))
'''
STAGE = '''
"""A stage: weights are clipped."""

import torch
from pydantic import Field

from compress.core.config import Config
from compress.runs.artifact import Artifact
from compress.runs.measure import measured
from compress.runs.stage import Stage, stages


class ClipConfig(Config):
    """How far weights may lie from 0."""

    largest: float = Field(gt=0, description="largest magnitude of a weight")


@stages.register("acme_clip")
class Clip(Stage[ClipConfig]):
    """Clip all weights."""

    order = 45
    Config = ClipConfig
    description = "weights are clipped"

    def run(self, artifact, config, context):
        """Clip in place, measure and tell how many were changed."""
        with torch.no_grad():
            clipped = 0
            for weight in artifact.loaded.model.parameters():
                clipped += int((weight.abs() > config.largest).sum())
                weight.clamp_(-config.largest, config.largest)
        context.details["clipped"] = clipped
        return Artifact(measured(artifact.loaded, context))
'''
TASK = '''
"""A task: the probability of every class, by Brier's score."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from evaluators.tasks.task import Meter, Metric, Task, TaskConfig, tasks

BRIER = Metric("brier", "minimize", "Brier", "Brier score", worst=2.0)
LOSS = Metric("loss", "minimize", "loss", "Loss", worst=2.0)


@tasks.register("acme_brier")
class BrierConfig(TaskConfig):
    """Probabilities of the classes: models give logits (N, classes)."""

    metrics: ClassVar[tuple[Metric, ...]] = (BRIER, LOSS)
    name: Literal["acme_brier"] = "acme_brier"
    sharpness: tuple[float, float] = (1.0, 1.0)  # of the first classes, and of the others

    def bind(self, num_outputs, input_size):
        return Brier(num_outputs, input_size, self)

    def outputs_of(self, outputs):
        return outputs.shape[1] if outputs.ndim == 2 else None


class Brier(Task):
    """Squared distance of the probabilities from 1 for the right class and 0 for the others."""

    def loss(self, outputs, batch, model=None):
        first, others = self.config.sharpness
        outputs = torch.cat([outputs[:, :5] * first, outputs[:, 5:] * others], dim=1)
        return (outputs.softmax(1) - F.one_hot(batch.targets, outputs.shape[1])).square().sum(1).mean()

    def tensor(self, outputs):
        return outputs

    def meter(self):
        return Sum(self)


class Sum(Meter):
    """The mean over all samples."""

    def __init__(self, task):
        self.task, self.total, self.count = task, 0.0, 0

    def update(self, outputs, batch):
        self.total += float(self.task.loss(torch.as_tensor(outputs), batch)) * len(batch)
        self.count += len(batch)

    def compute(self):
        return {"brier": self.total / self.count, "loss": self.total / self.count}
'''
TARGET = '''
"""A target: another Python of this machine."""

import subprocess
import sys
from typing import Literal

from pydantic import Field

from evaluators.latency.targets import TargetBase, targets


@targets.register("acme_shell")
class ShellTarget(TargetBase):
    """A Python that a shell starts."""

    kind: Literal["acme_shell"] = "acme_shell"
    nice: int = Field(0, ge=0)
    options: tuple[str, ...] = ()

    @property
    def shown(self):
        return f"shell, nice {self.nice}"

    def run(self, program):
        command = f"nice -n {self.nice} {sys.executable} {' '.join(self.options)} -"
        return subprocess.run(command, shell=True, input=program, capture_output=True)
'''
ASKED = """
from typer.testing import CliRunner
from compress.cli import app

def asked(*words):
    return CliRunner().invoke(app, words)

assert "acme_relative" in asked("ls", "criteria").stdout.split()
assert "acme_width" in asked("ls", "spaces").stdout.split()
assert "acme_brier" in asked("ls", "tasks").stdout.split()
assert "acme_clip" in asked("ls", "stages").stdout.split()
assert "acme_shell" in asked("ls", "targets").stdout.split()

from compress.runs.recipe import load_recipe
from compress.testing.targets import check_target

latency = lambda target: {"export.opset": 18, "latency.target": target}
for written in ("acme_shell", {"kind": "acme_shell", "nice": 3, "options": ["-B", "-s"]}):
    recipe = load_recipe("acme.yaml", latency(written))
check_target(recipe.section("latency").target)
assert recipe.resolved()["latency"]["target"] == {"kind": "acme_shell", "nice": 3, "options": ["-B", "-s"]}
wrong = asked("validate", "acme.yaml", "--set=prune.criterion=acme_relativ", "--set=acme_clip.largest=0",
              "--set=export={}", "--set=latency.target={kind: acme_shell, nice: -1}")
assert wrong.exit_code == 2 and len(wrong.stderr.splitlines()) == 3, wrong.stderr
assert "latency.target.nice: out of range; got -1; allowed at least 0" in wrong.stderr
assert "acme_clip.largest: out of range; got 0; allowed above 0" in wrong.stderr
assert "did you mean 'acme_relative'?" in wrong.stderr
"""
RECIPE = """
version: 1
name: acme
task: {name: acme_brier, sharpness: [1.0, 1.5]}
model: {source: space, name: acme_width, kwargs: {arch: {width: 4}}}
data: {name: digits, image_size: 8, limit_train: 100, limit_test: 50}
train: {epochs: 1}
prune: {kind: weights, criterion: acme_relative, sparsity: 0.5, modules: {convolutions: ["2.weight"]}}
acme_clip: {largest: 0.05}
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
    command = [sys.executable, "-m", "compress", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_recipe_uses_what_another_package_brings(tmp_path: Path) -> None:
    modules = {"criterion": CRITERION, "space": SPACE, "task": TASK, "stage": STAGE, "target": TARGET}
    environment = install(tmp_path, modules, {name: f"acme.{name}" for name in modules})
    (tmp_path / "acme.yaml").write_text(RECIPE)
    done = compress(["run", "--recipe", "acme.yaml", "--quiet", "--json"], environment, tmp_path)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "runs" / "acme" / "report.json").read_text())
    assert report["final"]["nonzero_params"] < report["baseline"]["nonzero_params"]
    assert report["task"] == {"name": "acme_brier", "main_metric": "brier", "direction": "minimize"}
    assert 0 < report["final"]["brier"] < 2 and "top1" not in report["final"]
    assert f"  Brier {report['baseline']['brier']:.1f}→" in done.stderr
    (details,) = (tmp_path / "runs" / "acme" / "stages").glob("*-acme_clip/details.json")
    assert json.loads(details.read_text())["clipped"] > 0
    found = subprocess.run([sys.executable, "-c", ASKED], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


BROKEN = {
    "gone": ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    "ends": ("raise SystemExit('no licence')", "SystemExit: no licence"),
    "taken": (CRITERION.replace("acme_relative", "magnitude"), "'magnitude' is taken by compress.criteria.magnitude"),
    "odd": (
        "from spaces.registry import spaces\nspaces.register('x')(dict)",
        "space 'x' is <class 'dict'>, no subclass",
    ),
}


def test_a_broken_plug_in_is_one_sentence_that_names_its_package(tmp_path: Path) -> None:
    modules = {name: source for name, (source, _) in BROKEN.items()}
    environment = install(tmp_path, modules, {name: f"acme.{name}" for name in modules})
    done = compress(["validate", "dimap_swin.yaml"], environment, tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    sentences = done.stderr.splitlines()
    assert len(sentences) == len(BROKEN)
    for sentence, (name, (_, says)) in zip(sentences, BROKEN.items(), strict=True):
        assert sentence.startswith(f"the plug-in {name!r} (acme.{name}) of acme-plugins cannot be imported: ")
        assert says in sentence
