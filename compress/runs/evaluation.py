"""How good a bundle or an ONNX file is on the test images of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.bundle import class_names_in, open_model, refuse_another_order, saved
from compress.bundle_files import MANIFEST
from compress.core.environment import choose_device, on_device
from compress.core.errors import InputError
from compress.core.progress import say
from compress.export.onnx_model import OnnxModel
from compress.runs.recipe import Recipe
from evaluators.datasets import Data, Loader
from evaluators.tasks.evaluation import evaluate
from evaluators.tasks.opened import opened


def evaluate_file(path: Path, recipe: Recipe, device: str = "auto") -> dict[str, Any]:
    """Return the task's metrics and the number of images; preprocessing is the bundle's, for ONNX the recipe's model's.

    Images get the size and the channels that an ONNX file fixes.

    Raises `InputError` where the recipe has no test images, the file is no bundle and no ONNX model, or it is one that
    does not map images to what the recipe's task needs.
    """
    if path.is_file():
        data = _tested(_data_for_file(recipe))
        file = OnnxModel(path, data.task)
        _check_classes(path, data)
        test = _fitting(recipe, data, file)
        return {**evaluate(file, test, data.task), "images": test.num_samples}
    opened = open_model(saved(path), recipe.data, recipe.seed, recipe.task)
    if opened.note:
        say(opened.note)
    data, chosen = _tested(opened.data), choose_device(device)
    assert data.test is not None
    with on_device(opened.bundle.model, chosen):
        return {**evaluate(opened.bundle.model, data.test, data.task, chosen), "images": data.test.num_samples}


def _check_classes(file: Path, data: Data) -> None:
    """Hold the classes of the data against those of the bundle beside a run's file."""
    if (file.parent / "bundle" / MANIFEST).is_file():
        for note in refuse_another_order(class_names_in(file.parent / "bundle"), data.class_names):
            say(note)


def _data_for_file(recipe: Recipe) -> Data | None:
    """Return the data as the recipe's model takes them; as they are where a search finds it, which trains so."""
    model = recipe.model
    if model is None:
        return opened(recipe.data, recipe.task, seed=recipe.seed)
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
    found = opened(config, recipe.task, hint, seed=recipe.seed)
    assert found is not None and found.test is not None
    return found.test


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return statistics of pixels for another number of channels: the average for grey, the same thrice for colour."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels
