"""Files of models whose inputs are described: names, types, ranges, and which dimensions are open."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from compress.cli import app
from compress.core.config import Config
from compress.core.errors import CompressError, InputError
from compress.core.inputs import Description, ModelInputs
from compress.export.exporters import ExportConfig, ExportResult, export


class Section(Config):
    inputs: Description | None = None


class Net(nn.Module):
    """A small U-Net of an image and a step that an embedding reads; `gain` is a table for all samples, above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 2, 2)
        self.out, self.steps = nn.Conv2d(7, 2, 1), nn.Embedding(10, 8)

    def forward(self, x: Tensor, step: Tensor, gain: Tensor) -> dict[str, Any]:
        y = self.down(x).relu() + self.steps(step)[:, :, None, None]
        return {"maps": [self.out(torch.cat([self.up(y), x], 1))], "sums": y.mean((2, 3)) * gain.log().sum()}


INPUTS = {
    "x": {"shape": [3, 8, 12], "dynamic": {2: "height", 3: "width"}},
    "step": {"shape": [], "dtype": "int64", "low": 1, "high": 10},
    "gain": {"shape": [4], "low": 1, "high": 2, "batched": False},
}


def inputs(**changed: Any) -> ModelInputs:
    described = ModelInputs.of(Section.model_validate({"inputs": {**INPUTS, **changed}}).inputs)
    assert described is not None
    return described


def exported(folder: Path, exporter: str, described: ModelInputs, model: type[nn.Module] = Net) -> ExportResult:
    torch.manual_seed(0)
    config = ExportConfig.model_validate({"exporter": exporter})
    return export(model().eval(), described.draw(2), folder / "m.onnx", config, inputs=described)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_named_dimensions_are_open_and_checked_at_several_sizes(tmp_path: Path, exporter: str) -> None:
    result = exported(tmp_path, exporter, inputs())
    assert {(8, 12), (12, 18), (12, 12), (8, 18)} <= set(result.checked_sizes) and not result.notes
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert {each.name: each.shape for each in session.get_inputs()} == {
        "x": ["batch", 3, "height", "width"], "step": ["batch"], "gain": [4]
    }  # fmt: skip
    assert [each.name for each in session.get_outputs()] == ["maps_0", "sums"]
    torch.manual_seed(0)
    model, feed = Net().eval(), inputs().draw(3, seed=5, open_sizes={"height": 14, "width": 30})
    maps, sums = session.run(None, {name: value.numpy() for name, value in feed.items()})
    with torch.no_grad():
        expected = model(**feed)
    torch.testing.assert_close(torch.from_numpy(maps), expected["maps"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(sums), expected["sums"], rtol=1e-4, atol=1e-5)


class Fixed(Net):
    """Adds a map of fixed size, so that it takes no other."""

    def forward(self, x: Tensor, step: Tensor, gain: Tensor) -> dict[str, Any]:
        return super().forward(x + torch.ones(8, 12), step, gain)


def test_a_dimension_that_cannot_be_open_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes no other height than 8 \(tried 9, 12, 16: .*\); leave it out of dyn"):
        exported(tmp_path, "torchscript", inputs(), Fixed)
    with pytest.raises(InputError, match=r"export.dynamic_size: model.inputs name what is open"):
        export(Net(), inputs().draw(2), tmp_path / "m.onnx", ExportConfig(dynamic_size=True), inputs=inputs())
    assert not list(tmp_path.iterdir())


def latency(*arguments: str) -> Any:
    quick = ["--set", "latency.runs=3", "--set", "latency.seconds=0", "--json"]
    return CliRunner().invoke(app, ["latency", *arguments, *quick])


def test_files_are_timed_on_the_inputs_that_they_tell_of_or_that_are_told(tmp_path: Path) -> None:
    exported(tmp_path, "torchscript", inputs(step={"shape": [], "dtype": "int64", "low": 8, "high": 10}))
    found = latency(str(tmp_path / "m.onnx"))
    assert found.exit_code == 0 and json.loads(found.stdout)[0]["latency_ms"]["p50"] > 0, found.output
    file = onnx.load(tmp_path / "m.onnx")
    del file.metadata_props[:]  # of another tool
    onnx.save(file, tmp_path / "other.onnx")
    refused = latency(str(tmp_path / "other.onnx"))
    assert refused.exit_code == 2 and "input 'x' has open sizes" in refused.output
    given = ["--set", "latency.inputs={x: {shape: [3, 8, 8]}, step: {low: 3, high: 10}}"]
    assert latency(str(tmp_path / "other.onnx"), *given).exit_code == 0
    for wrong, sentence in (
        ("{y: {high: 2}}", "inputs: the model has no input 'y'; allowed: x, step, gain"),
        ("{x: {shape: [4, 8, 8]}}", "input 'x' has the fixed sizes ['batch', 3, 'height', 'width']; got [4, 8, 8]"),
        ("{x: {shape: [8]}}", "input 'x' has 4 dimensions"),
        ("{x: {shape: [3, 8, 8]}, step: {low: 3, high: 3}}", "input 'step': low must be below high; got 3 and 3"),
        ("{x: {shape: [3, 8, 8]}, step: {high: 99}}", "does not run on inputs"),
    ):
        found = latency(str(tmp_path / "other.onnx"), "--set", f"latency.inputs={wrong}")
        assert found.exit_code == 2 and sentence in found.output, (wrong, found.output)


@dataclass
class Scene:
    image: Tensor
    scale: Tensor


class OfScene(nn.Module):
    """Reads one argument that holds two tensors, a dataclass or a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 4)

    def forward(self, scene: Any, mask: Tensor | None, *, twice: bool = False) -> Tensor:
        assert mask is None
        image, scale = (scene["image"], scene["scale"]) if isinstance(scene, dict) else (scene.image, scene.scale)
        return self.out(image * scale[:, None]) * (2 if twice else 1)


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("kind", [dict, Scene])
def test_one_argument_that_holds_several_tensors(tmp_path: Path, exporter: Any, kind: Any) -> None:
    image, scale = torch.randn(2, 3), torch.tensor([2.0, 3.0])
    example, model = {"scene": kind(image=image, scale=scale), "mask": None, "twice": True}, OfScene().eval()
    export(model, example, tmp_path / "m.onnx", ExportConfig(exporter=exporter))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"scene_image": (image + 1).numpy(), "scene_scale": (scale + 1).numpy()})
    with torch.no_grad():
        expected = model({"image": image + 1, "scale": scale + 1}, None, twice=True)
    assert torch.allclose(torch.from_numpy(given), expected, atol=1e-5)


def test_files_of_halves_are_compared_as_near_as_halves_are_and_complex_outputs_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(4)]).half().eval()
    result = export(deep, torch.randn(2, 16).half(), tmp_path / "m.onnx", ExportConfig(exporter="dynamo"))
    assert 1e-4 < result.parity_max_rel < 5e-3
    with pytest.raises(InputError, match="holds complex numbers"):
        export(Spectrum(), torch.randn(2, 16), tmp_path / "c.onnx")


class Ranking(nn.Module):
    """Of many positions those with the highest scores, which are all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.out = nn.Linear(4, 1), nn.Linear(4, 3)
        nn.init.zeros_(self.score.weight)

    def forward(self, x: Tensor) -> Tensor:
        places = self.score(x).topk(5, dim=1).indices
        return self.out(x.gather(1, places.expand(-1, -1, 4)))


class Pointwise(Ranking):
    """The same, whose file is wrong for another reason: it does what it does in training."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + float(x.sum())


def test_a_model_that_ranks_equal_values_is_compared_with_noise_on_its_weights(tmp_path: Path) -> None:
    model = Ranking().eval()
    result = export(model, torch.randn(2, 80, 4), tmp_path / "m.onnx", ExportConfig(exporter="torchscript"))
    assert any("values that are exactly equal" in note for note in result.notes) and result.parity_max_rel > 0
    kept = [onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "m.onnx").graph.initializer]
    weight = model.out.weight.detach()
    assert any(array.size == 12 and torch.equal(torch.tensor(array).reshape(4, 3), weight.T) for array in kept)
    with pytest.raises(CompressError, match="is off by"):
        export(Pointwise().eval(), torch.randn(2, 80, 4), tmp_path / "w.onnx", ExportConfig(exporter="torchscript"))
