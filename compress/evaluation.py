"""Accuracy of a bundle or an ONNX file on the test images of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compress.bundle import open_model
from compress.environment import choose_device, on_device
from compress.errors import InputError
from compress.recipe import Recipe
from evaluators.accuracy import evaluate
from spaces.zoo import ModelConfig


def evaluate_file(path: Path, recipe: Recipe, device: str = "auto") -> dict[str, Any]:
    """Return top1, top5, loss and the number of images; preprocessing is the bundle's, for ONNX the recipe's model's.

    Raises `InputError` where the recipe has no test images or the file is no bundle and no ONNX model.
    """
    onnx = path.is_file()
    model = recipe.given_model if onnx else ModelConfig(source="bundle", name=str(path))
    if onnx and model.source != "bundle":
        model = model.model_copy(update={"checkpoint": None, "pretrained": False})
    opened = open_model(model, recipe.data, recipe.seed)
    if opened.data is None or opened.data.test is None:
        raise InputError("data: the recipe has no test images; name a data set with --set data.name=...")
    test = opened.data.test
    if onnx:
        found = evaluate(onnx_callable(path), test)
    else:
        chosen = choose_device(device)
        with on_device(opened.bundle.model, chosen):
            found = evaluate(opened.bundle.model, test, chosen)
    return {**found, "images": test.num_samples}


def onnx_callable(path: Path) -> Callable[[Tensor], np.ndarray[Any, Any]]:
    """Return a function from images (N, C, H, W) to the logits that ONNX Runtime gives for them.

    A file with a fixed batch is fed in pieces, the last one filled up.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own for each kind of failure
        raise InputError(f"{path} is no model that ONNX Runtime reads: {str(error).splitlines()[0]}") from error
    entry = session.get_inputs()[0]
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def run(images: Tensor) -> np.ndarray[Any, Any]:
        values = images.numpy()
        if batch is None:
            return np.asarray(session.run(None, {entry.name: values})[0])
        pieces = []
        for start in range(0, len(values), batch):
            piece = values[start : start + batch]
            filled = np.concatenate([piece, np.repeat(piece[-1:], batch - len(piece), axis=0)])
            pieces.append(np.asarray(session.run(None, {entry.name: filled})[0])[: len(piece)])
        return np.concatenate(pieces)

    return run
