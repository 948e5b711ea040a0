"""An ONNX file as models of a task are called: images in, outputs out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import InputError, is_out_of_memory, reason_of
from compress.core.onnx_parts import together
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

    def __call__(self, images: Tensor) -> Any:
        """Return the outputs for images (N, C, H, W); InputError where they are not of the task."""
        values = images.numpy().astype(FLOATS[self.entry.type])
        batch = self.entry.shape[0] if isinstance(self.entry.shape[0], int) else len(values)
        pieces = []
        for start in range(0, len(values), batch):
            piece = values[start : start + batch]
            filled = np.concatenate([piece, np.repeat(piece[-1:], batch - len(piece), axis=0)])
            pieces.append([output[: len(piece)] for output in self._run(filled)])
        return self._as_model([np.concatenate(parts) for parts in zip(*pieces, strict=True)])

    def _as_model(self, given: Sequence[np.ndarray[Any, Any]]) -> Any:
        found = [torch.from_numpy(each) for each in given]
        return found[0] if len(found) == 1 else dict(zip(self.outputs, found, strict=True))

    def _run(self, values: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Return the outputs for a batch."""
        try:
            given = [np.asarray(each) for each in self.session.run(self.outputs, {self.entry.name: values})]
        except Exception as error:  # see above
            if is_out_of_memory(error):
                raise
            raise InputError(f"{self.path} does not run on images {values.shape}: {reason_of(error)}") from error
        fits = all(each.dtype.kind in "fiub" and each.shape[:1] == values.shape[:1] for each in given)
        if not fits or self.task.config.outputs_of(self._as_model([each[:1] for each in given])) is None:
            told = ", ".join(
                f"{name!r} is {each.dtype} of shape {each.shape}"
                for name, each in zip(self.outputs, given, strict=True)
            )
            raise InputError(f"{self.path}: its output {told} for {len(values)} images; {self.task.form} are needed")
        return given
