"""How good a bundle or an ONNX file is on the test images of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.bundle import open_model, saved
from compress.core.environment import choose_device, on_device
from compress.core.errors import InputError, is_out_of_memory, reason_of
from compress.core.onnx_parts import together
from compress.runs.recipe import Recipe
from evaluators.datasets import Data, Loader
from evaluators.tasks import Task
from evaluators.tasks.evaluation import evaluate

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def evaluate_file(path: Path, recipe: Recipe, device: str = "auto") -> dict[str, Any]:
    """Return the task's metrics and the number of images; preprocessing is the bundle's, for ONNX the recipe's model's.

    Images get the size and the channels that an ONNX file fixes.

    Raises `InputError` where the recipe has no test images, the file is no bundle and no ONNX model, or it is one that
    does not map images to what the recipe's task needs.
    """
    if path.is_file():
        data = _tested(_data_for_file(recipe))
        file = OnnxModel(path, data.task)
        test = _fitting(recipe, data, file)
        return {**evaluate(file, test, data.task), "images": test.num_samples}
    opened = open_model(saved(path), recipe.data, recipe.seed, recipe.task)
    data, chosen = _tested(opened.data), choose_device(device)
    assert data.test is not None
    with on_device(opened.bundle.model, chosen):
        return {**evaluate(opened.bundle.model, data.test, data.task, chosen), "images": data.test.num_samples}


def _data_for_file(recipe: Recipe) -> Data | None:
    """Return the data as the recipe's model takes them; as they are where a search finds it, which trains so."""
    model = recipe.model
    if model is None:
        return recipe.data.load(recipe.task, seed=recipe.seed)
    without_weights = model.model_copy(update={"checkpoint": None, "pretrained": False})
    return open_model(without_weights, recipe.data, recipe.seed, recipe.task).data


def _tested(data: Data | None) -> Data:
    """Return data with test images; InputError where there are none."""
    if data is None or data.test is None:
        raise InputError("data: the recipe has no test images; name a data set with --set data.name=...")
    return data


def _fitting(recipe: Recipe, data: Data, file: OnnxModel) -> Loader:
    """Return the test images in the size and with the channels that the file fixes."""
    known = data.preprocessing
    wanted = file.fitted(known.input_size)
    if wanted == known.input_size:
        assert data.test is not None
        return data.test
    channels = wanted[0]
    if channels not in (1, 3):
        raise InputError(f"{file.path}: its input has {channels} channels; images give 1 or 3")
    mean, std = (_for_channels(values, channels) for values in (known.mean, known.std))
    hint = known.to_dict() | {"input_size": wanted, "mean": mean, "std": std, "fixed_input_size": True}
    config = recipe.data.model_copy(update={"image_size": None, "channels": channels, "mean": mean, "std": std})
    found = config.load(recipe.task, hint, seed=recipe.seed)
    assert found is not None and found.test is not None
    return found.test


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return statistics of pixels for another number of channels: the average for grey, the same thrice for colour."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


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
