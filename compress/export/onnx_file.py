"""What is done to an ONNX file after an exporter wrote it: cleaned, checked against the module, put in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.errors import CompressError
from compress.export.checks import Check
from compress.export.shortcuts import padding_as_convolutions
from evaluators.latency.agent.feed import DESCRIBED
from evaluators.tasks import Task

SINGLE_FILE_BYTES = 1_500_000_000  # protobuf ends at 2 GB
FIRST_NORMAL_FLOAT32 = 0x00800000


def clean(source: Path, target: Path, data_name: str, inputs: Mapping[str, Any] | None = None) -> int:
    """Copy the ONNX file `source` to `target` without denormal weights and notes; return how many were zeroed.

    What is to be known of its `inputs` to feed it goes into its metadata. Shortcuts that pad channels become
    convolutions, see `shortcuts`.

    Below 1.5 GB everything is in one file, above it weights are in `data_name` beside `target`. Denormal numbers, which
    weight decay and pruning leave behind, slow processors down up to 30-fold (ONNX Runtime, issues 5117 and 7448). The
    notes are source lines and paths of this machine.
    """
    import onnx

    model = onnx.load(source)
    padding_as_convolutions(model)
    for node in (each for owner in (model.graph, *model.functions) for each in owner.node):
        del node.metadata_props[:]
        node.doc_string = ""
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    zeroed = sum(_zero_denormals(tensor) for tensor in tensors)
    describe(model, inputs)
    if sum(len(tensor.raw_data) for tensor in tensors) > SINGLE_FILE_BYTES:
        onnx.save_model(model, target, save_as_external_data=True, location=data_name)
    else:
        onnx.save_model(model, target)
    return zeroed


def describe(model: Any, inputs: Mapping[str, Any] | None) -> None:
    """Write what is to be known of the inputs into the metadata of an ONNX ModelProto, where the agent reads it."""
    if inputs:
        model.metadata_props.add(key=DESCRIBED, value=json.dumps(inputs))


def _zero_denormals(tensor: Any) -> int:
    """Zero the denormal numbers of a float32 TensorProto in place; return their count."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if tensor.data_type != TensorProto.FLOAT:
        return 0
    values = numpy_helper.to_array(tensor)
    magnitude = np.ascontiguousarray(values).view(np.uint32) & 0x7FFFFFFF  # comparisons fail where denormals flush to 0
    denormal = (magnitude > 0) & (magnitude < FIRST_NORMAL_FLOAT32)
    count = int(denormal.sum())
    if count:
        tensor.CopyFrom(numpy_helper.from_array(np.where(denormal, np.float32(0), values), tensor.name))
    return count


def read_opset(path: Path) -> int:
    """Return the version of the standard operator set that the file at `path` was written for."""
    import onnx

    imports = onnx.load(path, load_external_data=False).opset_import
    return next(int(each.version) for each in imports if each.domain in ("", "ai.onnx"))


def verify(path: Path, checks: list[Check], task: Task) -> float:
    """Run the ONNX checker and every check through ONNX Runtime; return the largest max|d| / max|y|.

    Raises:
        CompressError: an output is off by more than the task's tolerance (1e-4, as a rule, more where the module itself
            amplifies rounding, see `Check.allowed`), or says something else in terms of the task.
    """
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {each.name for each in session.get_inputs()}
    worst = 0.0
    for check in checks:
        when = check.when
        feed = {name: value.numpy() for name, value in check.inputs.items() if name in taken}  # one may go unused
        outputs = session.run(list(check.expected), feed)
        try:
            found = {name: torch.from_numpy(output) for name, output in zip(check.expected, outputs, strict=True)}
            given, expected = task.paired(found, check.expected)
        except CompressError as error:
            raise CompressError(f"{when} {error}") from error
        for name, value in expected.items():
            compared = partial(_difference, name, given[name], value, when, task, alone=len(expected) == 1)
            try:
                difference = compared(task.tolerance(name, check.rounding))
            except CompressError:
                allowed = check.allowed()
                if allowed <= check.rounding:
                    raise
                difference = compared(task.tolerance(name, allowed))
            worst = max(worst, difference)
    return worst


def _difference(
    name: str, output: Tensor, expected: Tensor, when: str, task: Task, allowed: float, *, alone: bool
) -> float:
    """Return max|d| / max|y| of one output; CompressError above `allowed`, of another shape, or not the task's same."""
    what = f"{when} its output " + ("" if alone else f"{name!r} ")
    if output.shape != expected.shape:
        raise CompressError(f"{what}has shape {tuple(output.shape)} instead of {tuple(expected.shape)}")
    if not expected.numel():
        return 0.0
    output, expected = output.double(), expected.double()
    scale = expected.abs().max().item()
    relative = (output - expected).abs().max().item() / (scale or 1.0)
    if not relative <= allowed:
        raise CompressError(f"{what}is off by {relative:.1e} of the largest (allowed {allowed:g})")
    wrong = task.disagreement(name, output, expected, within=allowed * scale)
    if wrong is not None:
        raise CompressError(f"{when} {wrong}")
    return relative


def place(candidate: Path, path: Path, data_name: str) -> int:
    """Move a finished file, and its weights where they are apart, to `path`; return the bytes of both.

    An older pair loses its ONNX file first, so that no graph ever stands beside another's weights.
    """
    weights, old_weights = candidate.parent / data_name, path.parent / data_name
    size = candidate.stat().st_size
    if weights.exists():
        size += weights.stat().st_size
        path.unlink(missing_ok=True)
        weights.replace(old_weights)
        candidate.replace(path)
    else:
        candidate.replace(path)
        old_weights.unlink(missing_ok=True)
    return size
