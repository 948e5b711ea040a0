"""What is in the files, by the files themselves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compress.export.exporters import ExportConfig, export
from compress.export.onnx_model import OnnxModel
from compress.export.quick import export_quickly
from compress.quantize.float_file import MULTIPLYING, FloatFile
from compress.quantize.judge import judge
from compress.quantize.number_types import U8S7, U8S8, U8U8
from compress.quantize.rounding import roundings_of
from compress.quantize.simulation import simulate
from compress.quantize.writer import Way, dynamic, ranges, static, write
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT
from tests.support.integers import EXACT


def constants(file):
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer}


@pytest.mark.parametrize(("types", "largest"), [(U8S8, 127), (U8S7, 64), (U8U8, 255)])
def test_weights_are_within_half_a_step_of_the_floats(trained, tmp_path, types, largest):
    source = trained.source(tmp_path)
    way = static(types, False, True, "minmax")
    images = trained.choice(tmp_path).images
    write(way, source, tmp_path / "q.onnx", ranges(source, way.operators, images.calibration, "minmax"))
    floats = {each.name: numpy_helper.to_array(each) for each in source.model.graph.initializer}
    written = constants(tmp_path / "q.onnx")
    convolutions = [name for name, value in floats.items() if value.ndim == 4]
    assert len(convolutions) >= 7
    for name in convolutions:
        integers, scale = (written[f"{name}_{part}"] for part in ("quantized", "scale"))
        zero = written[f"{name}_zero_point"].astype(np.int32)
        assert np.abs(integers.astype(np.int32)).max() <= largest
        shape = (-1, 1, 1, 1)
        back = (integers.astype(np.int32) - zero.reshape(shape)) * scale.reshape(shape)
        assert (np.abs(back - floats[name]) <= 0.501 * scale.reshape(shape)).all()
        assert (scale.size == len(floats[name])) == types.symmetric_weights


def test_only_and_but_say_which_layers_become_integers(trained, tmp_path):
    source = trained.source(tmp_path)
    way = static(U8S8, False, True, "minmax")
    found = ranges(source, way.operators, trained.choice(tmp_path).images.calibration, "minmax")
    nodes = [layer.node for layer in source.layers]

    def integers(**which):
        write(way, source, tmp_path / "q.onnx", found, **which)
        names = {weight for node in source.model.graph.node for weight in node.input[1:2] if node.name in nodes}
        return sum(f"{name}_quantized" in constants(tmp_path / "q.onnx") for name in names)

    assert integers() == len(nodes)
    assert integers(only=nodes[:2]) == 2
    assert integers(but=nodes[:2]) == len(nodes) - 2


@pytest.mark.parametrize("calibrate", ["minmax", "percentile", "entropy"])
def test_each_kind_of_range_gives_a_file_that_agrees_with_the_floats(trained, tmp_path, calibrate):
    source, images = trained.source(tmp_path), trained.choice(tmp_path).images
    way = static(EXACT, True, True, calibrate)
    write(way, source, tmp_path / "q.onnx", ranges(source, way.operators, images.few, calibrate))
    before, after = (judge(file, images.few, trained.data.task) for file in (trained.file, tmp_path / "q.onnx"))
    assert after.agreement(before) >= 97
    assert 0 < after.error(before) < 0.02


def test_calibration_prints_nothing(trained, tmp_path, capsys):
    source = trained.source(tmp_path)
    ranges(source, MULTIPLYING, trained.choice(tmp_path).images.few, "percentile")
    assert capsys.readouterr().out == ""


class Mixing(torch.nn.Module):
    """Attention without a softmax: products with weights, and of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 4, 4)
        self.inner, self.outer = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        first, second, third = self.inner(tokens).chunk(3, dim=2)
        mixed = (first @ second.transpose(1, 2) / 16) @ third
        return self.head(self.outer(mixed).mean(1))


@pytest.fixture(scope="module")
def mixing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixing")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixing().eval()
    export_quickly(model, torch.randn(2, 3, 16, 16), folder / "m.onnx", DEFAULT.bind(10, (3, 16, 16)))
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    return FloatFile.prepare(folder / "m.onnx", folder, weights)


def test_layers_have_the_names_of_their_modules(mixing):
    assert {layer.name for layer in mixing.layers if layer.weighted} == {"stem", "inner", "outer", "head"}
    assert sum(not layer.weighted for layer in mixing.layers) == 2
    assert [layer.name for layer in mixing.matching(("out*", "head"))] == ["outer", "head"]


def test_dynamic_makes_integers_of_products_with_weights_alone(mixing, tmp_path):
    write(dynamic(U8S8, True), mixing, tmp_path / "q.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 3
    assert kinds.count("MatMul") == 2
    assert kinds.count("Conv") == 1


def test_fp16_keeps_the_types_of_inputs_and_outputs(trained, tmp_path):
    write(Way("fp16"), trained.source(tmp_path), tmp_path / "h.onnx")
    before, after = (
        judge(file, trained.choice(tmp_path).images.few, trained.data.task)
        for file in (trained.file, tmp_path / "h.onnx")
    )
    assert after.agreement(before) == 100
    assert 0 < after.error(before) < 1e-4
    assert (tmp_path / "h.onnx").stat().st_size < 0.6 * trained.file.stat().st_size


class Shifted(torch.nn.Module):
    """Images, and a whole number for each that says what is added to their maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = torch.nn.Conv2d(3, 16, 3, 2), torch.nn.BatchNorm2d(16)
        self.table, self.head = torch.nn.Embedding(4, 16), torch.nn.Linear(16, 10)

    def forward(self, image: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.head(self.norm(self.stem(image)).relu().mean((2, 3)) + self.table(place))


@pytest.mark.parametrize("way", [Way("fp16"), dynamic(EXACT, True), static(EXACT, True, True, "minmax")])
def test_files_of_several_inputs_have_fewer_bits_and_the_names_of_the_layers(tmp_path, way):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Shifted().eval()
        example = {"image": torch.randn(8, 3, 16, 16), "place": torch.arange(8) % 4}
    export(model, example, tmp_path / "m.onnx", ExportConfig(exporter="torchscript"))
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    source = FloatFile.prepare(tmp_path / "m.onnx", tmp_path, weights)
    assert {layer.name for layer in source.layers} == {"stem", "head"}
    batch = Batch(example, torch.zeros(8, dtype=torch.int64))
    found = ranges(source, way.operators, Few(batch), "minmax") if way.method == "static" else None
    write(way, source, tmp_path / "q.onnx", found)
    given = OnnxModel(tmp_path / "q.onnx", DEFAULT.bind(10, (3, 16, 16)))(**example)
    wanted = model(**example).detach()
    assert 0 < (given - wanted).abs().max() < 0.02 * wanted.abs().max()
    if way.method == "static":
        simulation = simulate(model, roundings_of(tmp_path / "q.onnx", way, source), source, batch)
        assert simulation.found == simulation.wanted
        with torch.no_grad(), simulation.of(model):
            assert (model(**example) - given).abs().max() < 0.3 * (wanted - given).abs().max()


class Few:
    """One batch, as a loader gives it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def batches(self):
        return iter([self.batch])
