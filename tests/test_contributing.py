"""What CONTRIBUTING.md says: its examples work as they stand on the page, and imports point where it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from compress.runs.catalog import REGISTRIES, registries

ROOT = Path(__file__).parent.parent
PACKAGES = ("compress", "search", "spaces", "evaluators")
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

USE = """
import json
import random
import onnxruntime
import optuna
import torch
from typer.testing import CliRunner

import compress
from compress.cli import app
from compress.distill.losses import losses
from compress.testing.stages import check_stage
from compress.testing.steps import check_training_step
from compress.testing.tasks import check_task
from compress.training.config import TrainConfig
from compress.training.step import StepContext
from compress.training.trainer import Trainer
from evaluators.datasets.batch import Batch
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT, tasks
from search.strategies import make_sampler
from search.strategies.one_step import OneStepStrategy
from search.strategies.strategy import StrategyContext
from spaces.registry import create

optuna.logging.disable_default_handler()
listed = lambda kind: CliRunner().invoke(app, ["ls", kind]).stdout.split()
assert "relative" in listed("criteria") and "mse" in listed("losses")
assert listed("stages")[listed("stages").index("finetune") + 1] == "clip"
assert "ladder" in listed("spaces") and "one_step" in listed("strategies")

changes = ["prune.criterion=relative", "finetune.distill={loss: mse, weight: 0.5}", "train.step={name: tempered}"]
result = CliRunner().invoke(app, ["validate", "dimap_swin.yaml", *(f"--set={change}" for change in changes)])
assert result.exit_code == 0, result.output
one, two = torch.zeros(2, 3), torch.ones(2, 3)
assert losses.get("mse")(weight=0.5).term(one, two) == 0.5

config = TrainConfig(epochs=1, step={"name": "tempered", "start": 2.0})
data = DigitsConfig(name="digits", limit_train=64, limit_test=8, batch_size=16).load(DEFAULT)
step = config.make_step(StepContext(config, data), seed=0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))
model(next(data.train.batches()).inputs)
Trainer(model, step, data, config).run()
assert 1.9 < step.temperature < 2.1 and step.temperature != 2.0
check_training_step(config.step)

with open("clipped.yaml", "w") as file:
    model = "{source: builtin, name: cifar_resnet20}"
    file.write(f"{{version: 1, name: clipped, model: {model}, data: {{name: none}}, clip: {{}}}}")
check_stage("clip", {"limit": 2.5}, data={"name": "none"})
report = compress.run("clipped.yaml").report
assert [stage["name"] for stage in report["stages"]] == ["dense", "clip"]
assert "weights clipped" in open("runs/clipped/report.html").read()

space = create("ladder", {"rungs": 3})
assert space.count() == 3 + 9 + 27
context = StrategyContext(space, ("maximize",), trials=20, seed=0)
study = optuna.create_study(sampler=make_sampler(OneStepStrategy(name="one_step"), context), direction="maximize")
study.optimize(lambda trial: -space.cost(space.suggest(trial), space.task(10, 3, 8))["params"], n_trials=20)
assert study.best_params == {"depth": 1, "rung1.width": 16}, study.best_params
arch = space.check(study.best_params)
assert space.build(arch, space.task(10, 3, 8))(torch.zeros(2, 3, 8, 8)).shape == (2, 10)

grade = tasks.get("grade")().bind(10, (3, 8, 8))
graded = space.build(arch, grade)
check_task(grade, Batch(torch.rand(6, 3, 8, 8), torch.arange(6)), lambda batch: graded(batch.inputs))
result = CliRunner().invoke(app, ["run", "--recipe", "graded.yaml"])
assert result.exit_code == 0, result.stderr
report = json.load(open("runs/graded/report.json"))
assert report["task"] == {"name": "grade", "main_metric": "error", "direction": "minimize"}
search = json.load(open("runs/graded/stages/01-search/details.json"))["search"]
assert (search["objective"], search["directions"]) == (["error"], ["minimize"])
assert json.load(open("runs/graded/bundle/bundle.json"))["task"] == {"name": "grade"}
session = onnxruntime.InferenceSession("runs/graded/model.onnx")
assert [output.name for output in session.get_outputs()] == ["grade"]
for name in ("runs/graded", "runs/graded/model.onnx"):
    found = json.loads(CliRunner().invoke(app, ["eval", name, "--json"]).stdout)
    assert abs(found["error"] - report["final"]["error"]) < 1e-3, (found, report["final"])
wrong = CliRunner().invoke(app, ["run", "--recipe", "clipped.yaml", "--set=task.name=grade", "--out=runs/other"])
assert wrong.exit_code == 0, wrong.stderr  # no data: the head is built for one number
"""
GRADED = """
version: 1
name: graded
task: {name: grade}
data: {name: digits, image_size: 8, limit_train: 60, limit_test: 50}
search:
  space: {name: ladder, options: {rungs: 2}}
  strategy: {name: random}
  evaluator: {kind: train, train: {epochs: 1}}
  trials: 2
prune: {kind: weights, criterion: relative, sparsity: 0.5, modules: {convolutions: ["*"]}}
finetune: {epochs: 1, distill: {loss: mse}}
export: {exporter: torchscript}
"""


def test_the_examples_work_as_they_stand_on_the_page(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    files = re.findall(r"such as `([\w/]+\.py)`.*?```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(files) == PAGE.count("```python") == 7
    for name, code in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(code, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    (tmp_path / "graded.yaml").write_text(GRADED)
    done = subprocess.run([sys.executable, "-c", USE], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_has_a_row_for_every_kind_that_is_listed_and_names_what_there_is() -> None:
    rows = re.findall(r"^\| (\w+)[^|]* \| (.*?) \| .*? \| (?:`(.*?)`)? ?\|$", PAGE, re.MULTILINE)
    assert sorted(kind for kind, _, _ in rows if kind != "kind") == sorted(REGISTRIES)
    for kind, places, suite in rows[1:]:
        named = [name.rpartition(".") for name in re.findall(r"`(.*?)`", places)]
        assert [getattr(import_module(module), name) for module, _, name in named] == registries(kind)
        assert not suite or import_module(suite)
