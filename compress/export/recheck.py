"""An ONNX file that lies on disk, held against the module that it was made of, and taken elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import nn

from compress.core.errors import CompressError
from compress.core.onnx_parts import parts, together
from compress.core.tensors import Inputs
from compress.export.checks import answered
from compress.export.onnx_file import verify
from evaluators.tasks import Task


def parity(path: Path, model: nn.Module, example: Callable[[int], Inputs], task: Task) -> float:
    """Return by how much outputs of the file at `path` differ from those of `model`: max|d| / max|y|.

    Args:
        path: written by `compress.export.exporters.export` of this model and task.
        model: on the CPU.
        example: returns inputs for a number of samples; those that the file fixes, else 2.
        task: of the model.

    Raises:
        InputError: it is no readable ONNX file.
        CompressError: its outputs are another network's.
    """
    import onnx

    with together(path) as file:
        inputs = onnx.load(file, load_external_data=False).graph.input
        firsts = {size.dim_value for each in inputs for size in each.type.tensor_type.shape.dim[:1]}  # 0: it is open
        batch = max(firsts) if len(firsts) == 1 else 0
        samples = task.file_inputs(example(batch or 2))
        try:
            return verify(file, [answered(task.for_file(model, True), samples, task)], task)
        except CompressError:
            raise
        except Exception as error:  # the checker and ONNX Runtime raise classes of their own
            raise CompressError(f"it is not to be run: {' '.join(str(error).split())[:300]}") from error


def copied(source: Path, target: Path) -> int:
    """Copy an ONNX file, weights beside it as `<target>.data`; return the size of all, in bytes.

    Raises InputError where it is no readable ONNX file, or its weights are not there.
    """
    import onnx

    if len(parts(source)) == 1:
        shutil.copyfile(source, target)
    else:
        data = f"{target.name}.data"
        onnx.save_model(onnx.load(source), target, save_as_external_data=True, location=data)
    return sum(file.stat().st_size for file in parts(target).values())
