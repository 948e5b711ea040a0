"""An ONNX file as models of a task are called: images in, outputs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import InputError, is_out_of_memory, reason_of
from compress.core.onnx_parts import together
from evaluators.datasets.batch import joined_values
from evaluators.tasks import Task

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxModel:
    """Maps images (N, C, H, W) to what ONNX Runtime gives for them, by an ONNX file, as models of a task give it.

    A file with a fixed batch is fed in pieces, the last one filled up.
    """

    def __init__(self, path: Path, task: Task) -> None:
        """Open the file; raises InputError, in one sentence, for one that ONNX Runtime or images do not fit."""
        import onnxruntime

        self.path, self.task = path, task
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            with together(path) as file:
                self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except InputError:
            raise
        except Exception as error:  # onnxruntime raises classes of its own for each kind of failure
            if is_out_of_memory(error):
                raise
            raise InputError(f"{path} is no model that ONNX Runtime reads: {reason_of(error)}") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            listed = f" ({', '.join(each.name for each in inputs)})" if inputs else ""
            raise InputError(f"{path} takes {len(inputs) or 'no'} inputs{listed}; one of images is needed")
        self.entry = inputs[0]
        if len(self.entry.shape) != 4:
            raise InputError(f"{path}: its input has the shape {self.entry.shape}; images (N, C, H, W) are needed")
        if self.entry.type not in FLOATS:
            raise InputError(f"{path}: its input is a {self.entry.type}; allowed: {', '.join(FLOATS)}")
        self.outputs = task.outputs_in([each.name for each in self.session.get_outputs()])

    def fitted(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return channels, height and width: those that the file fixes, else those of `shape`."""
        own = self.entry.shape[1:]
        return tuple(one if isinstance(one, int) else other for one, other in zip(own, shape, strict=True))

    def __call__(self, images: Tensor | list[Tensor]) -> Any:
        """Return the outputs for images (N, C, H, W), or a list of them; InputError where they are not of the task."""
        if isinstance(images, list) and len({image.shape for image in images}) > 1:
            raise InputError(f"{self.path}: a file takes images of one size; those of the data have several")
        tensor = torch.stack(images) if isinstance(images, list) else images
        values = tensor.numpy().astype(FLOATS[self.entry.type])
        batch = self.entry.shape[0] if isinstance(self.entry.shape[0], int) else len(values)
        pieces = []
        for start in range(0, len(values), batch):
            piece = values[start : start + batch]
            filled = np.concatenate([piece, np.repeat(piece[-1:], batch - len(piece), axis=0)])
            pieces.append(self._run(filled, len(piece)))
        return joined_values(pieces)

    def _run(self, values: np.ndarray[Any, Any], samples: int) -> Any:
        """Return the outputs for the first samples of a batch."""
        try:
            given = [np.asarray(each) for each in self.session.run(self.outputs, {self.entry.name: values})]
        except Exception as error:  # see above
            if is_out_of_memory(error):
                raise
            raise InputError(f"{self.path} does not run on images {values.shape}: {reason_of(error)}") from error
        named = {name: torch.from_numpy(each) for name, each in zip(self.outputs, given, strict=True) if _fits(each)}
        sized = self.task.fixed_batch or all(each.shape[:1] == values.shape[:1] for each in given)
        if not sized or len(named) < len(given) or self.task.config.outputs_of(self._one(named, values)) is None:
            told = ", ".join(
                f"{name!r} is {each.dtype} of shape {each.shape}"
                for name, each in zip(self.outputs, given, strict=True)
            )
            raise InputError(f"{self.path}: its output {told} for {len(values)} images; {self.task.form} are needed")
        return self.task.of_file(named, samples)

    def _one(self, named: dict[str, Tensor], values: np.ndarray[Any, Any]) -> Any:
        """Return the outputs for one image as models give them; they do not fit the task where they cannot be."""
        if not self.task.fixed_batch:
            return self.task.of_file(named, 1)
        try:
            return self.task.of_file(named, len(values))
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error


def _fits(output: np.ndarray[Any, Any]) -> bool:
    return output.dtype.kind in "fiub"
