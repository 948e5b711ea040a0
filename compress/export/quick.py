"""Write one of many networks as ONNX, where both exporters and a comparison of them would take too long."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from compress.core.copies import copied
from compress.core.errors import CompressError, InputError, is_out_of_memory
from compress.core.inputs import ModelInputs
from compress.core.tensors import Inputs, mapped, tensors_in
from compress.export.checks import Flat, like, needs_flat, shares_batch
from compress.export.exporters import ExportConfig, ExportResult, export
from compress.export.shortcuts import padding_as_convolutions
from compress.export.torch_exporters import cause, export_traced, quiet
from compress.transforms.layers import folded
from evaluators.tasks import Task


def export_quickly(
    model: nn.Module,
    example_inputs: Inputs,
    path: Path,
    task: Task,
    inputs: ModelInputs | None = None,
    post_processing: bool = True,
) -> ExportResult:
    """Write `model` to the ONNX file `path`, checked as `compress.export.exporters.export` does.

    By torch's TorchScript exporter, which takes a second where the other takes ten, or by that one where it fails.
    Raises as `export` does.
    """
    config = ExportConfig(exporter="torchscript", post_processing=post_processing)
    try:
        return export(model, example_inputs, path, config, task, inputs)
    except InputError:
        raise
    except CompressError:
        return export(model, example_inputs, path, config.model_copy(update={"exporter": "dynamo"}), task, inputs)


def write_to_time(model: nn.Module, example_inputs: Inputs, path: Path, batch: int) -> int:
    """Write `model` to an ONNX file that is only timed: all sizes fixed, unchecked; return its batch.

    In a tenth of the time of `export`. Names of its nodes tell their modules. Where the inputs share no batch, theirs
    stay as they are.

    Raises:
        CompressError: torch's TorchScript exporter cannot write it.
    """
    module = folded(copied(model).cpu().eval().requires_grad_(False))
    example = mapped(example_inputs, lambda each: each.detach().cpu())
    if shares_batch(example):
        example = like(example, batch, seed=7)
    flat = Flat(module, example) if needs_flat(module, example) else module
    tensors = tuple(tensors_in(example))
    try:
        with quiet():
            arguments = (tensors,) if isinstance(flat, Flat) else tensors
            export_traced(flat, arguments, path, opset_version=ExportConfig().opset)
        _rewrite(path)
    except Exception as error:  # the exporter raises anything
        if is_out_of_memory(error):
            raise
        raise CompressError(f"a narrowed copy of the model could not be exported: {cause(error)}") from error
    images = next((each for each in tensors if each.ndim == 4), tensors[0])
    return len(images) if images.ndim else 1


def _rewrite(path: Path) -> None:
    """Do to a file what is done to those that are kept, as far as it changes their time."""
    import onnx

    model = onnx.load(path)
    if padding_as_convolutions(model):
        onnx.save_model(model, path)
