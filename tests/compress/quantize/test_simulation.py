"""A module rounded in its forward pass answers as ONNX Runtime does by the INT8 file of the same weights."""

from __future__ import annotations

import copy

import pytest
import torch

from compress.core.errors import CompressError
from compress.distill.finetune import FinetuneConfig
from compress.export.onnx_model import OnnxModel
from compress.export.quick import export_quickly
from compress.quantize.config import QuantizeConfig
from compress.quantize.float_file import FloatFile
from compress.quantize.images import images_of
from compress.quantize.judge import judge
from compress.quantize.number_types import S8S8, U8S7, U8U8
from compress.quantize.rounding import OfActivation, roundings_of
from compress.quantize.simulation import simulate
from compress.quantize.writer import ranges, static, write
from compress.training.fit import fit
from evaluators.tasks import DEFAULT
from evaluators.tasks.evaluation import evaluate
from tests.support.integers import EXACT


def written(source, way, images, folder):
    write(way, source, folder / "q.onnx", ranges(source, way.operators, images, "minmax"))
    return folder / "q.onnx"


def errors(model, simulation, file, batch):
    """Mean squares of what the floats and the rounded module are off from the file, over the file's own."""
    wanted = OnnxModel(file, DEFAULT.bind(10, (3, 16, 16)))(batch.inputs)
    with torch.no_grad():
        floats = model(batch.inputs)
        with simulation.of(model):
            rounded = model(batch.inputs)
        assert torch.equal(model(batch.inputs), floats)
    return [((each - wanted).square().mean() / wanted.square().mean()).item() for each in (floats, rounded)]


@pytest.mark.parametrize(
    ("types", "wide", "channels", "nearer"),
    [
        (EXACT, False, True, 10),
        (EXACT, True, True, 10),
        (U8S7, False, False, 10),
        (U8U8, False, False, 10),
        (S8S8, False, False, 10),
    ],
)
def test_a_rounded_module_is_much_nearer_to_the_file_than_the_floats(trained, tmp_path, types, wide, channels, nearer):
    source, images = trained.source(tmp_path), trained.choice(tmp_path).images
    way = static(types, wide, channels, "minmax")
    file = written(source, way, images.calibration, tmp_path)
    batch = next(iter(images.few.batches()))
    model = trained.bundle.model
    simulation = simulate(model, roundings_of(file, way, source), source, batch.part(0, 2))
    assert simulation.found == simulation.wanted > 25
    floats, rounded = errors(model, simulation, file, batch)
    assert 0 < nearer * rounded < floats


@pytest.fixture
def spoilt(trained):
    """The same function in floats; one channel is so large that few integers are left for the others beside it."""
    model = copy.deepcopy(trained.bundle.model)
    block = model.stages[0][0].units
    with torch.no_grad():
        for value in (block[0].norm.weight, block[0].norm.bias):
            value[0] *= 200
        block[1].conv.weight[:, 0] /= 200
    return model


def top1_of_integers(trained, model, folder):
    """The top-1 accuracy of an INT8 file of `model` on test images; and where the module rounds as it does."""
    task, data = trained.data.task, trained.data
    folder.mkdir()
    export_quickly(model, trained.bundle.example_inputs(2), folder / "m.onnx", task)
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    source = FloatFile.prepare(folder / "m.onnx", folder, weights)
    way, images = static(EXACT, True, True, "minmax"), images_of(data, QuantizeConfig(calibration=64, judged=100), 0)
    file = written(source, way, images.calibration, folder)
    batch = next(iter(images.few.batches())).part(0, 2)
    simulation = simulate(model, roundings_of(file, way, source), source, batch)
    return judge(file, data.test, task).metrics["top1"], simulation


def test_training_gives_back_what_integers_lose(trained, spoilt, tmp_path):
    floats = evaluate(spoilt, trained.data.test, trained.data.task)["top1"]
    before, simulation = top1_of_integers(trained, spoilt, tmp_path / "before")
    assert before < floats - 5
    with simulation.of(spoilt):
        assert evaluate(spoilt, trained.data.test, trained.data.task)["top1"] == pytest.approx(before, abs=1)
        fit(spoilt, trained.data, FinetuneConfig(epochs=2, lr=3e-4, evaluate_every=0), device="cpu", seed=0)
    after, _ = top1_of_integers(trained, spoilt, tmp_path / "after")
    print(floats, before, after)
    assert after > (before + floats) / 2


def test_gradients_pass_through_what_is_rounded_and_not_through_what_is_clipped():
    value = torch.tensor([-1.0, 0.26, 0.5, 3.0], requires_grad=True)
    rounded = OfActivation(scale=0.5, zero=0, low=0, high=4)(value)
    rounded.sum().backward()
    assert rounded.tolist() == [0.0, 0.5, 0.5, 2.0]
    assert value.grad.tolist() == [0, 1, 1, 0]


def test_a_model_that_computes_otherwise_than_before_is_told(trained, tmp_path):
    class Other(torch.nn.Module):
        def forward(self, images):
            return images.sigmoid().tanh().sigmoid().tanh()

    source, images = trained.source(tmp_path), trained.choice(tmp_path).images
    way = static(EXACT, True, True, "minmax")
    file = written(source, way, images.calibration, tmp_path)
    batch = next(iter(images.few.batches()))
    found = simulate(trained.bundle.model, roundings_of(file, way, source), source, batch.part(0, 2))
    found.layers.clear()
    with found.of(model := Other()), pytest.raises(CompressError, match="other operations than before"):
        model(batch.inputs)
    assert model(batch.inputs).shape == batch.inputs.shape  # and nothing rounds any more
