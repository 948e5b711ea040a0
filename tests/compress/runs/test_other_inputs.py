"""Recipes whose models take other inputs than square images, or give something else than logits."""

import json
import random

import pytest
import torch

import compress
from compress.bundle import Bundle, open_model
from compress.core.errors import InputError
from compress.runs.inspection import inspect_model
from compress.runs.recipe import load_recipe
from spaces.registry import create
from spaces.zoo import ModelConfig, build_model

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, conv, norm, channels, give):
        super().__init__()
        self.a, self.n, self.b = conv(channels, 16, 3, padding=1), norm(16), conv(16, 8, 3, padding=1)
        self.head, self.give = conv(8, 5, 1), give

    def forward(self, x):
        y = self.b(self.n(self.a(x)).relu()).relu()
        return self.give(self.head(y), y.flatten(2).mean(2))

def rectangular():
    return Net(nn.Conv2d, nn.BatchNorm2d, 1, lambda y, v: y.mean((2, 3)))

def sound():
    return Net(nn.Conv1d, nn.BatchNorm1d, 12, lambda y, v: [y, v])

def volume():
    return Net(nn.Conv3d, nn.BatchNorm3d, 1, lambda y, v: {"masks": (y, y[..., ::2, ::2, ::2]), "vector": v})

def dictionary():
    return Net(nn.Conv2d, nn.BatchNorm2d, 3, lambda y, v: {"masks": y, "vector": v})
"""
RECIPE = """
version: 1
name: other
model: {source: python, name: "models_of_test_other_inputs:NAME", input_size: SIZE}
data: {name: none}
prune: {kind: structure, criterion: magnitude, budget: {macs: 0.7}, align: 1}
export: {exporter: torchscript}
latency: {runs: 10, seconds: 0, max_seconds: 0.5}
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "models_of_test_other_inputs.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "size", "outputs"),
    [
        ("rectangular", (1, 8, 20), {"logits": (2, 5)}),
        ("sound", (12, 10), {"output_0": (2, 5, 10), "output_1": (2, 8)}),
        ("volume", (1, 4, 6, 8), {"masks_0": (2, 5, 4, 6, 8), "masks_1": (2, 5, 2, 3, 4), "vector": (2, 8)}),
    ],
)
def test_a_recipe_prunes_exports_and_measures_it(models, name, size, outputs):
    import onnxruntime

    (models / "recipe.yaml").write_text(RECIPE.replace("NAME", name).replace("SIZE", str(list(size))))
    result = compress.run(models / "recipe.yaml", out=models / "run")
    final, baseline = result.report["final"], result.report["baseline"]
    assert final["macs"] <= 0.7 * baseline["macs"] and final["top1"] is final["loss"] is None
    assert final["onnx_parity_max_rel"] < 1e-4 and final["latency_ms"]["p50"] > 0
    bundle = Bundle.load(models / "run")
    assert bundle.preprocessing.input_size == size and bundle.task.num_outputs == (5 if name == "rectangular" else 0)
    session = onnxruntime.InferenceSession(models / "run" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", *size]
    found = session.run(None, {"input": bundle.example_inputs(2).numpy()})
    assert {end.name: value.shape for end, value in zip(session.get_outputs(), found, strict=True)} == outputs
    again = inspect_model(str(models / "run"))
    assert (again.input_size, again.macs) == (size, final["macs"])
    measured = json.loads((models / "run" / "stages" / "04-latency" / "details.json").read_text())
    assert measured["records"]["final"]["shape"] == [1, *size]


def test_classes_of_images_need_logits(models):
    def opened(name, size, **data):
        overrides = {"model.name": f"models_of_test_other_inputs:{name}", "model.input_size": size} | {
            f"data.{key}": value for key, value in data.items()
        }
        (models / "recipe.yaml").write_text(
            RECIPE.replace("NAME", name).replace("SIZE", "null").replace("name: none", "name: digits")
        )
        recipe = load_recipe(models / "recipe.yaml", overrides)
        return open_model(recipe.given_model, recipe.data)

    with pytest.raises(InputError, match=r"returned a dict \(masks 1x5x32x32, vector 1x8\).*the data has 10 classes"):
        opened("dictionary", [3, 32, 32])
    with pytest.raises(InputError, match=r"the data holds images .*, the model takes 12x10; leave the images out"):
        opened("sound", [12, 10])
    with pytest.raises(InputError, match=r"input_size: got \[8, 20\]; the data needs 32 .*data.image_size"):
        opened("rectangular", [1, 8, 20], channels=1)


def test_images_are_resized_to_a_rectangle(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: wide\nmodel: {source: builtin, name: cifar_resnet20, input_size: [1, 16, 24]}\n"
        "data: {name: digits, image_size: null, channels: 1}\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    opened = open_model(recipe.given_model, recipe.data)
    images = next(opened.data.test.batches()).inputs
    assert tuple(images.shape[1:]) == opened.bundle.preprocessing.input_size == (1, 16, 24)
    opened.bundle.save(tmp_path / "bundle")
    again = open_model(ModelConfig(source="bundle", name=str(tmp_path / "bundle")), recipe.data)
    assert again.bundle.preprocessing.input_size == (1, 16, 24)


@pytest.mark.parametrize(
    ("source", "name", "kwargs"),
    [
        ("timm", "resnet10t", {}),
        ("timm", "vit_tiny_patch16_224", {"depth": 1}),
        ("torchvision", "shufflenet_v2_x0_5", {}),
        ("builtin", "cifar_resnet20", {}),
    ],
)
def test_every_source_takes_a_height_and_a_width(source, name, kwargs):
    built = build_model(ModelConfig(source=source, name=name, kwargs=kwargs, input_size=(3, 64, 96)))
    assert built.input_size == built.pretrained_cfg["input_size"] == (3, 64, 96)
    assert built.module(torch.zeros(1, 3, 64, 96)).shape == (1, built.task.num_outputs)
    again = build_model(ModelConfig.model_validate_json(built.config.model_dump_json()))
    assert again.module.state_dict().keys() == built.module.state_dict().keys() and again.input_size == (3, 64, 96)


def test_sources_of_square_images_say_so():
    arch = dict(create("nas_bench_macro").sample(random.Random(0)))
    for source, name, kwargs in (("torchvision", "vit_b_16", {}), ("space", "nas_bench_macro", {"arch": arch})):
        with pytest.raises(InputError, match=r"model\.input_size: .* take.? square images; got \[64, 96\]"):
            build_model(ModelConfig(source=source, name=name, kwargs=kwargs, input_size=(3, 64, 96)))


def test_models_of_images_take_three_sizes(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: x\nmodel: {name: resnet18, input_size: [80, 50]}\ndata: {name: none}\n"
    )
    with pytest.raises(InputError, match=r"recipe\.yaml:3 .*timm models take channels, height, width; got"):
        load_recipe(tmp_path / "recipe.yaml")
