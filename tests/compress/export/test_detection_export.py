"""Files of detectors: with and without suppression, compared after matching, and as good as the module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from tiny_detector import SIDE, images, make
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError
from compress.export.exporters import ExportConfig, export
from compress.export.onnx_model import OnnxModel
from evaluators.datasets.batch import Batch
from evaluators.latency.measure import LatencyConfig, record
from evaluators.tasks.detection import DetectionConfig
from evaluators.tasks.evaluation import evaluate

TASK = DetectionConfig().bind(4, (3, SIDE, SIDE))


def written(model: nn.Module, path: Path, **options: Any) -> Any:
    return export(model, TASK.arguments(images(2)), path, ExportConfig(exporter="torchscript", **options), TASK)


def shapes(path: Path) -> dict[str, list[Any]]:
    graph = onnx.load(path).graph
    return {
        each.name: [dim.dim_value or None for dim in each.type.tensor_type.shape.dim]
        for each in (*graph.input, *graph.output)
    }


@dataclass
class Split:
    """Images whose boxes are what a model finds in them, moved a little: so it is good at them without training."""

    batch: Batch
    batch_size: int = 3

    @property
    def num_samples(self) -> int:
        return len(self.batch)

    def __len__(self) -> int:
        return -(-len(self.batch) // self.batch_size)

    def batches(self) -> Iterator[Batch]:
        return self.batch.split(self.batch_size)


def known(model: nn.Module, count: int) -> Split:
    inputs = list(images(count, seed=5).unbind())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = model(inputs)
    targets = []
    for each in found:
        some = each["scores"].argsort(descending=True)[::3]
        boxes = each["boxes"][some]
        targets.append({"boxes": boxes + torch.rand(boxes.shape, generator=generator), "labels": each["labels"][some]})
    return Split(Batch(inputs, targets))


def test_a_file_with_suppression_is_as_good_as_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make()
    result = written(model, tmp_path / "one.onnx")
    assert 0 < result.parity_max_rel < 1e-4 and result.checked_batches == (1,)
    assert "takes one image at a time" in result.notes[0]
    assert shapes(tmp_path / "one.onnx") == {
        "images": [1, 3, SIDE, SIDE], "boxes": [None, 4], "labels": [None], "scores": [None]
    }  # fmt: skip
    split = known(model, 7)
    expected = evaluate(model, split, TASK)  # type: ignore[arg-type]
    assert 15 < float(expected["map"] or 0) < 90
    written(model, tmp_path / "two.onnx", batch=2)  # the last of seven images is filled up
    for name in ("one.onnx", "two.onnx"):
        figures = evaluate(OnnxModel(tmp_path / name, TASK), split, TASK)  # type: ignore[arg-type]
        assert all(float(figures[key] or 0) == pytest.approx(expected[key], abs=0.1) for key in ("map", "map50"))


def test_a_file_of_the_heads_gives_what_every_anchor_gets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = make(), tmp_path / "heads.onnx"
    result = written(model, path, post_processing=False)
    session = onnxruntime.InferenceSession(path)
    given = dict(zip(shapes(path), [None, *session.run(None, {"images": images(1).numpy()})], strict=True))
    places = (SIDE // 4) ** 2
    assert {name: value.shape for name, value in given.items() if value is not None} == {
        "cls_logits": (1, places, 4),
        "bbox_regression": (1, places, 4),
        "bbox_ctrness": (1, places, 1),
    }
    assert 0 < result.parity_max_rel < 1e-4 and len(result.notes) == 1
    assert not [node for node in onnx.load(path).graph.node if node.op_type == "NonMaxSuppression"]
    with pytest.raises(InputError, match="its outputs are cls_logits, bbox_regression, bbox_ctrness; boxes, labels"):
        evaluate(OnnxModel(path, TASK), known(model, 1), TASK)  # type: ignore[arg-type]
    for file in (path, tmp_path / "found.onnx"):
        if not file.exists():
            written(model, file)
        times = record(file, LatencyConfig(runs=3, seconds=0, max_seconds=5))
        assert times.p50 > 0


class Unknown(nn.Module):
    """A detector of which nobody knows what its heads give; it may find other boxes in a file."""

    def __init__(self, model: nn.Module, moved: float = 0.0) -> None:
        super().__init__()
        self.inner, self.moved = model, moved

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        found = self.inner(images)
        moved = self.moved if torch.onnx.is_in_onnx_export() else 0.0
        return [each | {"boxes": each["boxes"] + moved} for each in found]


def test_other_boxes_in_the_file_are_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(CompressError, match=r"\d+ of \d+ boxes have no partner"):
        written(Unknown(make(), moved=0.5), tmp_path / "moved.onnx")
    near = written(Unknown(make(), moved=SIDE * 3e-4), tmp_path / "near.onnx")  # as amplified rounding may be
    assert 1e-4 < near.parity_max_rel <= 1e-3
    (tmp_path / "near.onnx").unlink()
    with pytest.raises(InputError, match=r"export.post_processing: what the heads of this model give is not known"):
        written(Unknown(make()), tmp_path / "unknown.onnx", post_processing=False)
    assert not list(tmp_path.iterdir())


def test_nothing_found_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = make(score_thresh=0.9999)
    assert not any(len(each["boxes"]) for each in model(TASK.arguments(images(2))))
    result = written(model, tmp_path / "found.onnx")
    assert "files of what its heads give, or of lower thresholds, were compared as well" in result.notes[1]
    assert result.parity_max_rel > 0

    compute = type(model.head.classification_head).forward
    monkeypatch.setattr(
        type(model.head.classification_head),
        "forward",
        lambda self, x: compute(self, x) + 0.5 * torch.onnx.is_in_onnx_export(),
    )
    with pytest.raises(CompressError, match="'cls_logits' is off by"):
        written(model, tmp_path / "wrong.onnx")
    monkeypatch.undo()
    nothing = written(Unknown(make(score_thresh=0.9999)), tmp_path / "bare.onnx")
    assert nothing.parity_max_rel > 0  # its threshold was lowered
