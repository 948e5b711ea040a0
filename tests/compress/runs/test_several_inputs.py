"""Recipes whose models take several inputs: images, whole numbers, sequences, volumes, lists, tables."""

import json

import pytest
import torch
from typer.testing import CliRunner

import compress
from compress.bundle import Bundle
from compress.cli import app
from compress.core.tensors import call, flat

MODELS = """
from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import nn

Found = namedtuple("Found", ("masks", "vector"))

@dataclass
class Answer:
    masks: torch.Tensor
    parts: list

class Steps(nn.Module):
    '''An image, a step that an embedding reads, and a table that is the same for all samples.'''
    def __init__(self, give=Found):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.steps, self.c, self.give = nn.Embedding(10, 16), nn.Linear(16, 5), give

    def forward(self, image, step, table):
        y = (self.a(image) + self.steps(step)[:, :, None, None]).relu()
        return self.give(self.b(y), self.c(y.mean((2, 3))) @ table)

class Branches(nn.Module):
    '''Two images of different sizes that exchange features; or a list of such.'''
    def __init__(self, listed):
        super().__init__()
        self.high, self.low = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.out, self.listed = nn.Conv2d(16, 5, 1), listed

    def forward(self, *images):
        high, low = images[0] if self.listed else images
        y = self.high(high) + nn.functional.interpolate(self.low(low), size=high.shape[2:])
        return Answer(self.out(y.relu()), [self.out(self.low(low).relu())])

def branches(): return Branches(False)
def pyramid(): return Branches(True)

class Mixed(nn.Module):
    '''A sequence and a volume.'''
    def __init__(self):
        super().__init__()
        self.sound, self.volume, self.out = nn.Conv1d(8, 16, 3), nn.Conv3d(1, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, sound, volume, gain=None):
        y = self.sound(sound).mean(2) + self.volume(volume).flatten(2).mean(2)
        return {"scores": {"all": self.out(y.relu())}}
"""
RECIPE = """
version: 1
name: several
model: {source: python, name: "models_of_several_inputs:NAME", inputs: INPUTS}
data: {name: none}
prune: {kind: structure, criterion: magnitude, budget: {macs: 0.7}, align: 1}
export: {exporter: torchscript}
latency: {runs: 10, seconds: 0, max_seconds: 0.5}
"""
STEPS = (
    "{image: {shape: [3, 8, 8]}, step: {shape: [], dtype: int64, high: 10}, "
    "table: {shape: [5, 2], low: 1, high: 2, batched: false}}"
)
B = ["batch"]
IMAGES = "{shape: [3, 8, 8]}, {shape: [3, 4, 4]}"


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "models_of_several_inputs.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder, name, inputs):
    (folder / "recipe.yaml").write_text(RECIPE.replace("NAME", name).replace("INPUTS", inputs))
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("name", "inputs", "taken", "given"),
    [
        ("Steps", STEPS, {"image": [*B, 3, 8, 8], "step": B, "table": [5, 2]}, ["masks", "vector"]),
        (
            "branches",
            f"[{IMAGES}]",
            {"input_0": [*B, 3, 8, 8], "input_1": [*B, 3, 4, 4]},
            ["masks", "parts_0"],
        ),
        (
            "pyramid",
            f"[[{IMAGES}]]",
            {"input_0": [*B, 3, 8, 8], "input_1": [*B, 3, 4, 4]},
            ["masks", "parts_0"],
        ),
        (
            "Mixed",
            "{sound: {shape: [8, 20]}, volume: {shape: [1, 4, 6, 8]}}",
            {"sound": [*B, 8, 20], "volume": [*B, 1, 4, 6, 8]},
            ["scores_all"],
        ),
    ],
)
def test_a_recipe_prunes_exports_and_measures_it(models, name, inputs, taken, given):
    import onnxruntime

    result = compress.run(written(models, name, inputs), out=models / "run")
    final, baseline = result.report["final"], result.report["baseline"]
    assert final["macs"] <= 0.7 * baseline["macs"] and final["top1"] is None
    assert final["onnx_parity_max_rel"] < 1e-4 and final["latency_ms"]["p50"] > 0
    session = onnxruntime.InferenceSession(models / "run" / "model.onnx", providers=["CPUExecutionProvider"])
    assert {each.name: each.shape for each in session.get_inputs()} == taken
    assert [each.name for each in session.get_outputs()] == given
    bundle = Bundle.load(models / "run")
    assert json.loads((models / "run" / "bundle" / "bundle.json").read_text())["base"]["inputs"] is not None
    feed = dict(zip(taken, compress.core.tensors.tensors_in(bundle.example_inputs(3)), strict=True))
    found = session.run(None, {key: value.numpy() for key, value in feed.items()})
    with torch.no_grad():
        expected = flat(call(bundle.model, bundle.example_inputs(3)))
    torch.testing.assert_close(
        torch.cat([torch.from_numpy(each).double().flatten() for each in found]), expected, rtol=1e-4, atol=1e-5
    )


def test_commands_take_the_bundle_and_the_recipe(models):
    recipe = written(models, "Steps", STEPS)
    plan = CliRunner().invoke(app, ["plan", str(recipe)])
    assert plan.exit_code == 0, plan.output
    assert "inputs image 3x8x8, step int64 one number, table 5x2 (no batch)" in plan.output
    shown = CliRunner().invoke(
        app, ["inspect", "python:models_of_several_inputs:Steps", "--set", f"model.inputs={STEPS}"]
    )
    assert (shown.exit_code == 0 and "a:channels" in shown.output.replace(" ", "")[:2000]) or "a " in shown.output


@pytest.mark.parametrize(
    ("name", "inputs", "sentence"),
    [
        ("Steps", "{image: {shape: [3, 8, 8]}}", "model.inputs: missing a required argument: 'step'; the forward pass"),
        (
            "Mixed",
            "{sound: {shape: [8, 20]}, volumes: {shape: [1, 4, 6, 8]}}",
            "takes sound, volume, gain=None; did you mean 'volume'?",
        ),
        (
            "Mixed",
            "{sound: {shape: [9, 20]}, volume: {shape: [1, 4, 6, 8]}}",
            "fails in layer 'sound' on sound 9x20, vol",
        ),
        ("Mixed", "[{shape: [8, 20]}]", "model.inputs: missing a required argument: 'volume'"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_one_sentence(models, name, inputs, sentence):
    found = CliRunner().invoke(app, ["run", str(written(models, name, inputs)), "--out", str(models / "run")])
    assert found.exit_code == 2 and sentence in found.output and "Traceback" not in found.output
    assert not (models / "run" / "report.json").exists()
