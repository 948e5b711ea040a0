"""Write one of many networks as ONNX, where both exporters and a comparison of them would take too long."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from compress.core.errors import CompressError, InputError
from compress.export.exporters import ExportConfig, ExportResult, export
from evaluators.tasks import Task


def export_quickly(model: nn.Module, example_inputs: Tensor, path: Path, task: Task) -> ExportResult:
    """Write `model` to the ONNX file `path`, checked as `compress.export.exporters.export` does.

    By torch's TorchScript exporter, which takes a second where the other takes ten, or by that one where it fails.
    Raises as `export` does.
    """
    try:
        return export(model, example_inputs, path, ExportConfig(exporter="torchscript"), task)
    except InputError:
        raise
    except CompressError:
        return export(model, example_inputs, path, ExportConfig(exporter="dynamo"), task)
