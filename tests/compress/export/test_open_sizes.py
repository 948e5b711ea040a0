"""Files of class maps: any height and width of images where that is asked for, logits alone, by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError
from compress.export.exporters import ExportConfig, export
from compress.export.onnx_model import OnnxModel
from evaluators.tasks.segmentation import SegmentationConfig

TASK = SegmentationConfig().bind(4, (3, 32, 48))
QUICK = ExportConfig(exporter="torchscript")
ANY_SIZE = ExportConfig(exporter="torchscript", dynamic_size=True)


class Segmenter(nn.Module):
    """torchvision's convention: logits at the size of the images, and those of a head for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.aux = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(images))
        size = images.shape[-2:]
        return {"out": F.interpolate(self.head(x), size=size, mode="bilinear"), "aux": self.aux(x)}


def made(kind: type[nn.Module] = Segmenter) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def shapes(path: Path) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    session = onnxruntime.InferenceSession(path)
    return tuple({each.name: each.shape for each in of} for of in (session.get_inputs(), session.get_outputs()))  # type: ignore[return-value]


def test_a_file_gives_logits_alone_and_its_layers_keep_their_names(tmp_path: Path) -> None:
    model = made()
    export(model, torch.rand(2, 3, 32, 48), tmp_path / "m.onnx", QUICK, TASK)
    assert set(shapes(tmp_path / "m.onnx")[1]) == {"logits"}
    import onnx

    weights = {each.name for each in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert {"stem.weight", "head.weight"} <= weights and "aux.weight" not in weights
    images = torch.rand(2, 3, 32, 48)
    assert set(model(images)) == {"out", "aux"}, "the model itself is left as it was"
    given = OnnxModel(tmp_path / "m.onnx", TASK)(images)
    assert torch.allclose(given, model(images)["out"], atol=1e-5)


def test_any_height_and_width_is_open_and_checked(tmp_path: Path) -> None:
    model = made()
    result = export(model, torch.rand(2, 3, 32, 48), tmp_path / "m.onnx", ANY_SIZE, TASK)
    assert result.checked_sizes == ((32, 48), (49, 57), (64, 112))
    assert shapes(tmp_path / "m.onnx")[0] == {"input": ["batch", 3, "height", "width"]}
    images = torch.rand(3, 3, 57, 40)
    assert torch.allclose(OnnxModel(tmp_path / "m.onnx", TASK)(images), model(images)["out"], atol=1e-5)


class Traced(Segmenter):
    """Multiplies by a map that torch's tracing takes for a constant."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        rows = torch.linspace(0, 1, images.shape[2]).reshape(1, 1, -1, 1)
        return super().forward(images * torch.from_numpy(rows.numpy()))


def test_a_file_that_is_right_at_one_size_only_is_refused(tmp_path: Path) -> None:
    export(made(Traced), torch.rand(2, 3, 32, 48), tmp_path / "m.onnx", QUICK, TASK)
    with pytest.raises(CompressError, match="could not be exported"):
        export(made(Traced), torch.rand(2, 3, 32, 48), tmp_path / "any.onnx", ANY_SIZE, TASK)
    assert not (tmp_path / "any.onnx").exists()


class Even(Segmenter):
    """Takes images whose sides are multiples of 16."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward(F.pixel_shuffle(F.pixel_unshuffle(images, 16), 16))


class OneSize(Segmenter):
    """Adds a map of fixed size to the images, as position embeddings are."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.rand(3, 32, 48))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward(images + self.place)


def test_what_sizes_a_model_takes_is_told(tmp_path: Path) -> None:
    result = export(made(Even), torch.rand(2, 3, 32, 48), tmp_path / "m.onnx", ANY_SIZE, TASK)
    assert result.checked_sizes == ((32, 48), (64, 112))
    assert "the model does not take images of any height and width, so neither does the file" in result.notes
    sentence = r"export.dynamic_size: the model takes images of 32x48, and fails on 64x112 \(.*\); leave it out"
    with pytest.raises(InputError, match=sentence):
        export(made(OneSize), torch.rand(2, 3, 32, 48), tmp_path / "n.onnx", ANY_SIZE, TASK)
    with pytest.raises(InputError, match=r"dynamic_size: needs inputs that are images of one size; .* no images"):
        export(nn.Linear(4, 4), torch.rand(2, 4), tmp_path / "n.onnx", ANY_SIZE, TASK)
