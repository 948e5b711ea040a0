"""An ONNX file as models of a task are called: images, or several inputs by name, in, outputs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import InputError, is_out_of_memory, reason_of
from compress.core.onnx_parts import together
from compress.core.tensors import Inputs, named_tensors
from evaluators.datasets.batch import joined_values
from evaluators.latency.agent.feed import DTYPES
from evaluators.tasks import Task

Array = np.ndarray[Any, Any]


def feed(path: Path, entries: Sequence[Any], inputs: Inputs) -> dict[str, Array]:
    """Return what a session's `entries` (ONNX Runtime's NodeArgs) are fed for what a model is called with.

    Raises:
        InputError: the file takes others than there are, or integers where there are floats.
    """
    if isinstance(inputs, list) and len(entries) == 1:
        if len({image.shape for image in inputs}) > 1:
            raise InputError(f"{path}: a file takes images of one size; those of the data have several")
        inputs = torch.stack(inputs)
    found, names = named_tensors(inputs, "input", "input"), [each.name for each in entries]
    if len(found) == len(names) and (len(names) == 1 or not isinstance(inputs, dict)):
        found = dict(zip(names, found.values(), strict=True))
    absent = [name for name in names if name not in found]
    if absent:
        count = f"{len(names)} inputs ({', '.join(names)})" if len(names) > 1 else f"one input ({names[0]})"
        there = ", ".join(found) if isinstance(inputs, dict) else "one" if len(found) == 1 else str(len(found))
        raise InputError(f"{path} takes {count}; the data gives {there}")
    made = {}
    for entry in entries:
        values, kind = found[entry.name].numpy(), np.dtype(DTYPES[entry.type])
        if (values.dtype.kind == "f") != (kind.kind == "f"):
            one = "its input" if len(entries) == 1 else f"its input {entry.name!r}"
            raise InputError(f"{path}: {one} is a {entry.type}; the data gives {values.dtype}")
        made[entry.name] = values.astype(kind)
    return made


class OnnxModel:
    """Maps inputs to what ONNX Runtime gives for them, by an ONNX file, as models of a task give it.

    A file with a fixed batch is fed in pieces, the last one filled up.
    """

    def __init__(self, path: Path, task: Task) -> None:
        """Open the file; raises InputError, in one sentence, for one that ONNX Runtime does not read."""
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
        self.entries = self.session.get_inputs()
        if not self.entries:
            raise InputError(f"{path} takes no inputs, so it answers nothing about the data")
        for entry in self.entries:
            if entry.type not in DTYPES:
                raise InputError(f"{path}: its input {entry.name!r} is a {entry.type}; allowed: {', '.join(DTYPES)}")
        self.outputs = task.outputs_in([each.name for each in self.session.get_outputs()])

    def fitted(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of a sample: those that the file fixes, else those of `shape`; of several inputs `shape`.

        Raises:
            InputError: its one input has other dimensions.
        """
        if len(self.entries) > 1:
            return shape
        own = self.entries[0].shape[1:]
        if len(own) != len(shape):
            needed = "images (N, C, H, W)" if len(shape) == 3 else f"{len(shape) + 1} dimensions"
            raise InputError(f"{self.path}: its input has the shape {self.entries[0].shape}; {needed} are needed")
        return tuple(one if isinstance(one, int) else other for one, other in zip(own, shape, strict=True))

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Return the outputs for what a model is called with; InputError where they are not of the task.

        Images are a tensor (N, C, H, W) or a list of images; several inputs come in the file's order or by its names.
        """
        inputs = named or (positional if len(positional) > 1 else positional[0])
        values = feed(self.path, self.entries, inputs)
        samples = len(next(iter(values.values())))
        fixed = [each.shape[0] for each in self.entries if each.shape and isinstance(each.shape[0], int)]
        batch = fixed[0] if fixed else samples
        pieces = []
        for start in range(0, samples, batch):
            piece = {name: each[start : start + batch] for name, each in values.items()}
            filled = {
                name: np.concatenate([each, np.repeat(each[-1:], batch - len(each), axis=0)])
                for name, each in piece.items()
            }
            pieces.append(self._run(filled, batch, min(batch, samples - start)))
        return joined_values(pieces)

    def _run(self, values: Mapping[str, Array], batch: int, samples: int) -> Any:
        """Return the outputs for the first samples of a batch."""
        try:
            given = [np.asarray(each) for each in self.session.run(self.outputs, dict(values))]
        except Exception as error:  # see above
            if is_out_of_memory(error):
                raise
            shapes = ", ".join(f"{name} {each.shape}" for name, each in values.items())
            told = f"images {next(iter(values.values())).shape}" if len(values) == 1 else shapes
            raise InputError(f"{self.path} does not run on {told}: {reason_of(error)}") from error
        named = {name: torch.from_numpy(each) for name, each in zip(self.outputs, given, strict=True) if _fits(each)}
        sized = self.task.fixed_batch or all(each.shape[:1] == (batch,) for each in given)
        if not sized or len(named) < len(given) or self.task.config.outputs_of(self._one(named, batch)) is None:
            told = ", ".join(
                f"{name!r} is {each.dtype} of shape {each.shape}"
                for name, each in zip(self.outputs, given, strict=True)
            )
            raise InputError(f"{self.path}: its output {told} for {batch} samples; {self.task.form} are needed")
        return self.task.of_file(named, samples)

    def _one(self, named: dict[str, Tensor], batch: int) -> Any:
        """Return the outputs for one sample as models give them; they do not fit the task where they cannot be."""
        if not self.task.fixed_batch:
            return self.task.of_file(named, 1)
        try:
            return self.task.of_file(named, batch)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error


def _fits(output: Array) -> bool:
    return output.dtype.kind in "fiub"
