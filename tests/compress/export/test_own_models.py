"""Models as people bring them: a batch size that is baked in, dropout that is always on, logits in a dictionary."""

import dataclasses
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import CompressError
from compress.core.modes import draws_at_random
from compress.export.exporters import ExportConfig, export
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT
from spaces.shapes import peculiarities

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TASK = DEFAULT.bind(5, (3, 8, 8))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.first(x).relu().flatten(1))


class Baked(Net):
    def forward(self, x: Tensor) -> Any:
        return self.head(self.first(x).relu().reshape(int(x.shape[0]), -1))


class Dropping(Net):
    def forward(self, x: Tensor) -> Any:
        return self.head(F.dropout(self.first(x).relu().flatten(1)))


class Probabilities(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).softmax(1)


@dataclasses.dataclass
class Answer:
    logits: Tensor


class Fields(Net):
    def forward(self, x: Tensor) -> Any:
        return Answer(super().forward(x))


class Named(Net):
    def forward(self, x: Tensor) -> Any:
        return {"features": self.first(x), "logits": super().forward(x)}


def test_a_batch_size_that_is_baked_in_becomes_the_files(tmp_path: Path) -> None:
    """It failed, after the training."""
    result = export(Baked(), IMAGES, tmp_path / "m.onnx", ExportConfig(exporter="torchscript"), TASK)
    assert "the file takes 1 at a time" in result.notes[0]
    assert result.checked_batches == (1,)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 8, 8]
    given = session.run(None, {"input": IMAGES[:1].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(given), Baked()(IMAGES[:1]).detach())


def test_a_model_that_draws_in_evaluation_is_told_so(tmp_path: Path) -> None:
    """`off by 0.6` sent people looking for a fault of the exporter."""
    assert draws_at_random(Dropping(), IMAGES)
    assert not draws_at_random(nn.Sequential(Net(), nn.Dropout(0.5)), IMAGES)
    with pytest.raises(CompressError, match="other outputs each time"):
        export(Dropping(), IMAGES, tmp_path / "m.onnx", task=TASK)
    assert "other outputs each time" in peculiarities(Dropping(), TASK)[0]
    assert not list(tmp_path.iterdir())


def test_probabilities_in_place_of_logits_are_told() -> None:
    assert "the model gives probabilities" in peculiarities(Probabilities(), TASK)[0]
    assert peculiarities(Net(), TASK) == []


@pytest.mark.parametrize("kind", [Fields, Named])
def test_logits_are_found_by_their_name(kind: type[Net], tmp_path: Path) -> None:
    """What transformers' models give was refused."""
    model, batch = kind(), Batch(IMAGES, torch.tensor([0, 1]))
    outputs = model(IMAGES)
    assert DEFAULT.outputs_of(model(IMAGES[:1])) == 5
    assert torch.equal(TASK.tensor(outputs), Net()(IMAGES))
    assert torch.equal(TASK.loss(outputs, batch, model), F.cross_entropy(Net()(IMAGES), batch.targets))
    export(model, IMAGES, tmp_path / "m.onnx", ExportConfig(exporter="torchscript"), TASK)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert "logits" in [each.name for each in session.get_outputs()]


def test_of_two_files_the_one_of_the_opset_that_was_asked_for_is_kept(tmp_path: Path) -> None:
    """The file of dynamo was, of opset 18, with a note, though torchscript's had the 13."""
    result = export(Net(), IMAGES, tmp_path / "m.onnx", ExportConfig(opset=13), TASK)
    assert (result.opset, result.exporter, result.notes) == (13, "torchscript", ())
