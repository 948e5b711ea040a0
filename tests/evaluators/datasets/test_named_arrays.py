"""NumPy archives whose arrays models take as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from compress.bundle import open_model
from compress.core.errors import InputError
from compress.testing.datasets import check_dataset
from evaluators.datasets import Data, DataFacts
from evaluators.datasets import DataConfig as DataConfigType
from evaluators.datasets.holdout import resized, with_holdout
from evaluators.tasks import DEFAULT, tasks
from spaces.zoo import ModelConfig

adapter: TypeAdapter[Any] = TypeAdapter(DataConfigType)
REGRESSION, SEGMENTATION = (tasks.get(name)() for name in ("regression", "segmentation"))


def archive(folder: Path, **changes: Any) -> str:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 24), ("test", 10)):
        arrays |= {
            f"image_{split}": generator.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8),
            f"sound_{split}": generator.normal(size=(count, 2, 50)),
            f"step_{split}": generator.integers(0, 1000, count, dtype=np.int32),
            f"y_{split}": np.arange(count) % 3,
            f"noise_{split}": generator.normal(size=(count, 3, 8, 8)).astype(np.float16),
            f"map_{split}": generator.choice([0, 1, 4, 255], (count, 8, 8)).astype(np.uint8),
        }
    path = folder / "data.npz"
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return str(path)


def opened(path: str, task: Any = DEFAULT, **options: Any) -> Data:
    data = adapter.validate_python({"name": "npz", "path": path, "batch_size": 8, **options}).load(task)
    assert isinstance(data, Data)
    return data


def first(data: Data) -> Any:
    assert data.test is not None
    return next(iter(data.test.batches()))


def refused(path: str, task: Any = DEFAULT, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(path, task, **{"inputs": ["image", "step"], **options})
    (sentence,) = caught.value.problems
    assert "\n" not in sentence and sentence.startswith("data."), sentence
    return sentence


def test_inputs_come_in_the_form_that_they_are_named_in(tmp_path: Path) -> None:
    path = archive(tmp_path)
    with np.load(path) as arrays:
        image, sound, step = (arrays[f"{name}_test"] for name in ("image", "sound", "step"))
    one, two = first(opened(path, inputs=["sound"])), first(opened(path, inputs=["image", "step"]))
    assert one.inputs.dtype == torch.float32 and np.array_equal(one.inputs, sound.astype(np.float32))
    pixels, steps = two.inputs
    assert np.allclose(pixels * 255, image) and steps.dtype == torch.int64 and np.array_equal(steps, step)
    named = first(opened(path, inputs={"x": "image", "t": "step"})).inputs
    assert list(named) == ["x", "t"] and torch.equal(named["t"], steps) and len(two) == 10


@pytest.mark.parametrize(
    "task, targets, outputs, dtype",
    [(DEFAULT, "y", 3, torch.int64), (REGRESSION, "noise", 3, torch.float32), (SEGMENTATION, "map", 5, torch.int64)],
)
def test_targets_are_of_any_kind(tmp_path: Path, task: Any, targets: str, outputs: int, dtype: torch.dtype) -> None:
    options = {"name": "npz", "path": archive(tmp_path), "inputs": ["image", "step"], "targets": targets}
    config = adapter.validate_python({**options, "batch_size": 8})
    check_dataset(config, task)
    assert config.describe() == DataFacts(outputs, None, None, images=False)
    data = config.load(task)
    assert data.task.num_outputs == outputs and first(data).targets.dtype == dtype
    assert data.preprocessing.input_size == (3, 8, 8)
    assert adapter.validate_python(config.model_dump()) == config


def test_parts_are_held_out_by_class(tmp_path: Path) -> None:
    data = with_holdout(opened(archive(tmp_path), inputs=["image", "step"]), 0.25, 0)
    assert first(data).targets.bincount().tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="16 pixels a side"):
        resized(data, 16)


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "absent": ({"step_train": None}, ["no 'step_train'", "image_train"]),
    "too few": ({"step_train": np.arange(20)}, ["24 of image_train", "20 of step_train"]),
    "another shape": ({"step_test": np.zeros((10, 2), int)}, ["step_train and step_test", "[2]"]),
    "another type": ({"step_test": np.zeros(10)}, ["step_train and step_test", "float64"]),
    "infinite": ({"noise_train": np.full((24, 3), np.inf), "noise_test": np.ones((10, 3))}, []),
    "text": ({"y_train": np.array(["a"] * 24), "y_test": np.array(["a"] * 10)}, ["y_train", "allowed: numbers"]),
    "empty": ({"y_test": np.zeros(0, int)}, ["y_test", "(0,)"]),
    "negative": ({"y_train": np.arange(24) - 1}, ["class -1", "0 and up"]),
    "one class": ({"y_train": np.zeros(24, int), "y_test": np.zeros(10, int)}, ["two are needed"]),
    "from 1": ({"y_train": np.arange(24) % 3 + 1, "y_test": np.arange(10) % 3 + 1}, ["class 0", "data.num_classes"]),
    "a gap": ({"y_train": np.arange(24) % 3 * 10**12, "y_test": np.arange(10) % 3}, ["is of class 3"]),
    "beyond int64": ({"step_train": np.full(24, 2**63, "u8"), "step_test": np.ones(10, "u8")}, ["than int64 has"]),
    "beyond float32": ({"step_train": np.full(24, -1e300), "step_test": np.ones(10)}, ["1e+300, more than float32"]),
    "neither": ({"y_train": np.zeros((24, 2), int), "y_test": np.zeros((10, 2), int)}, ["(N, H, W)", "(24, 2)"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arrays_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    changes, words = WRONG[name]
    if name == "infinite":
        sentence = refused(archive(tmp_path, **changes), REGRESSION, targets="noise")
        words = ["noise_train", "infinite"]
    else:
        sentence = refused(archive(tmp_path, **changes))
    assert all(word in sentence for word in [str(tmp_path), *words]), sentence


def test_targets_that_do_not_fit_the_task_or_the_options_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path)
    assert "holds masks as map, and task classification learns from classes" in refused(path, targets="map")
    assert "y.astype(np.float32)" in refused(path, REGRESSION)
    assert "the class 2; allowed: 0 to 1 (data.num_classes)" in refused(path, num_classes=2)
    assert "the targets are values" in refused(path, REGRESSION, targets="noise", num_classes=3)
    for options, words in (
        ({"inputs": ["image"], "augment": "flip"}, "augment: not used with inputs"),
        ({"inputs": ["image"], "image_size": 32}, "image_size: not used with inputs"),
        ({"targets": "map"}, "targets: only used with inputs"),
        ({"inputs": []}, "at least 1"),
    ):
        with pytest.raises(ValidationError, match=words):
            adapter.validate_python({"name": "npz", "path": path, **options})


def test_arrays_that_the_model_does_not_take_are_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shifted.py").write_text(
        "from torch import nn\n"
        "class Shifted(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, 3, 1)\n"
        "    def forward(self, x, t):\n"
        "        return self.conv(x) + t[:, None, None, None]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def fitted(high: int = 1000, **inputs: str) -> None:
        described = {"x": {"shape": [3, 8, 8]}, "t": {"shape": [], "dtype": "int64", "high": high}}
        model = ModelConfig(source="python", name="shifted:Shifted", inputs=described)  # type: ignore[arg-type]
        options = {"name": "npz", "path": archive(tmp_path), "inputs": inputs, "targets": "noise"}
        found = open_model(model, adapter.validate_python(options), task=REGRESSION)
        assert found.data is not None and found.bundle.preprocessing.input_size == (3, 8, 8)

    fitted(x="image", t="step")
    with pytest.raises(InputError, match="have x of float32 3x8x8; the data gives float32 2x50 a sample"):
        fitted(x="sound", t="step")
    with pytest.raises(InputError, match="have t from 0 to 99; the data gives"):
        fitted(100, x="image", t="step")
