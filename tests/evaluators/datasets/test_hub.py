"""Masks and boxes of data sets in the Hugging Face hub's formats, from a directory."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated import SIZE
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from compress.core.errors import InputError
from compress.testing.datasets import check_dataset
from evaluators.datasets import Data, DataFacts
from evaluators.datasets import DataConfig as DataConfigType
from evaluators.tasks import tasks

adapter: TypeAdapter[Any] = TypeAdapter(DataConfigType)
NATIVE = {"image_size": 48, "workers": 0, "flip": 0, "scale": (1, 1), "color_jitter": 0}
SEGMENTATION, DETECTION = (tasks.get(name)() for name in ("segmentation", "detection"))
OBJECTS = [{"bbox": [[4, 5, 20, 15], [10, 8, 6, 4]], "category": [0, 1]}, {"bbox": [], "category": []}]


@pytest.fixture(autouse=True)
def package() -> Any:
    return pytest.importorskip("datasets")


def png(values: Any) -> dict[str, bytes]:
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(np.asarray(values), SIZE if np.ndim(values) < 2 else np.shape(values)).copy()).save(
        file, "png"
    )
    return {"bytes": file.getvalue()}


def picture(seed: int) -> dict[str, bytes]:
    return png(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8))


def masked(folder: Path, *masks: Any, files: bool = False) -> str:
    from datasets import Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "annotation": ImageFeature()})
    rows = {"image": [picture(n) for n in range(len(masks))], "annotation": [png(mask) for mask in masks]}
    made = Dataset.from_dict(rows, features=features)
    if files:  # as the hub holds them
        for split in ("train", "validation"):
            (folder / "data").mkdir(exist_ok=True)
            made.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    else:
        DatasetDict({"train": made, "validation": made}).save_to_disk(str(folder))
    return str(folder)


def boxed(folder: Path, objects: list[Any], named: bool = True) -> str:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
    from datasets import Image as ImageFeature

    label: Any = ClassLabel(names=["mask", "glove"]) if named else Value("int64")
    parts: Any = {"bbox": Sequence(Value("float32")), "category": label}
    inner = [parts] if isinstance(objects[0], list) else {key: Sequence(part) for key, part in parts.items()}
    features = Features({"image": ImageFeature(), "objects": inner})
    rows = {"image": [picture(n) for n in range(len(objects))], "objects": objects}
    made = Dataset.from_dict(rows, features=features)
    DatasetDict({"train": made, "test": made}).save_to_disk(str(folder))
    return str(folder)


def config(kind: str, dataset: str, **options: Any) -> Any:
    return adapter.validate_python({"name": f"huggingface_{kind}", "dataset": dataset, **NATIVE, **options})


def batch_of(data: Data) -> Any:
    assert data.test is not None
    return next(iter(data.test.batches()))


def refused(kind: str, dataset: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        config(kind, dataset, **options).load(SEGMENTATION if kind == "segmentation" else DETECTION)
    (sentence,) = caught.value.problems
    assert "\n" not in sentence and sentence.startswith("data."), sentence
    return sentence


@pytest.mark.parametrize("files", [False, True])
def test_masks_from_a_directory(tmp_path: Path, files: bool) -> None:
    dataset = masked(tmp_path, np.uint8(2), np.uint8(255), files=files)
    made = config("segmentation", dataset, classes=3, batch_size=1, path=str(tmp_path / "cache"), scale=(0.5, 2))
    check_dataset(made, SEGMENTATION)
    assert made.describe() == DataFacts(3, 48, None)
    masks = batch_of(made.load(SEGMENTATION)).targets[:, 8:40]
    assert [mask.unique().tolist() for mask in masks] == [[2], [255]]


def test_masks_may_hold_ids(tmp_path: Path) -> None:
    made = config("segmentation", masked(tmp_path, np.uint8(7)), classes=["a", "b"], ids={7: 1})
    assert batch_of(made.load(SEGMENTATION)).targets[:, 8:40].unique().tolist() == [1]
    with pytest.raises(ValidationError, match="none of the 2 classes"):
        config("segmentation", "x", classes=["a", "b"], ids={7: 2})


@pytest.mark.parametrize("form", ["lists in a mapping", "mappings in a list"])
def test_boxes_from_a_directory(tmp_path: Path, form: str) -> None:
    objects: list[Any] = OBJECTS
    if form == "mappings in a list":
        objects = [
            [{"bbox": box, "category": label} for box, label in zip(each["bbox"], each["category"], strict=True)]
            for each in OBJECTS
        ]
    made = config("detection", boxed(tmp_path, objects), batch_size=1, scale=(0.5, 2))
    check_dataset(made, DETECTION)
    data = made.load(DETECTION)
    first, second = batch_of(data).targets
    assert first["boxes"].tolist() == [[4, 13, 24, 28], [10, 16, 16, 20]] and first["labels"].tolist() == [1, 2]
    assert second["boxes"].shape == (0, 4) and data.class_names == ["background", "mask", "glove"]
    assert made.describe() == DataFacts(3, 48, None)


def test_corners_and_names_of_a_set_without_names(tmp_path: Path) -> None:
    dataset = boxed(tmp_path, OBJECTS, named=False)
    assert "class_names: missing" in refused("detection", dataset)
    made = config("detection", dataset, class_names=["a", "b"], box_format="xyxy", wrong_boxes="drop")
    (first, _) = batch_of(made.load(DETECTION)).targets
    assert first["boxes"].tolist() == [[4, 13, 20, 23]]  # the other one is inverted


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    def objects(number: int, box: list[float], label: int = 0) -> str:
        return boxed(tmp_path / str(number), [{"bbox": [box], "category": [label]}], named=False)

    names = {"class_names": ["a", "b"]}
    for number, (dataset, words) in enumerate((
        (objects(0, [40, 5, 20, 10]), ["row 0", "outside its image", "(48, 32)"]),
        (objects(1, [4, 5, 0, 10]), ["row 0", "holds nothing"]),
        (objects(2, [4, 5, 10]), ["row 0", "four finite numbers"]),
        (objects(3, [4, 5, 10, 10], 2), ["row 0", "category 2", "0 to 1"]),
        (boxed(tmp_path / "4", [{"bbox": [], "category": []}], named=False), ["no row", "holds an object"]),
    )):  # fmt: skip
        sentence = refused("detection", dataset, **names)
        assert all(word in sentence for word in ["data.train_split", *words]), (number, sentence)
    dataset = objects(5, [4, 5, 10, 10])
    assert "no column 'things'; allowed: image, objects" in refused("detection", dataset, objects_key="things", **names)
    assert "without 'box'" in refused("detection", dataset, box_key="box", **names)
    assert "cannot open test_split 'val'" in refused("detection", dataset, test_split="val", **names)
    assert "cannot open train_split" in refused("detection", str(tmp_path / "absent"), **names)
    for values, word in ((np.uint8(9), "class 9; allowed: 0 to 1"), (np.zeros((4, 4), np.uint8), "4x4 pixels")):
        folder = tmp_path / f"masks {word}".replace(";", "").replace(":", "")
        assert word in refused("segmentation", masked(folder, values), classes=2)


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "huggingface_detection needs the package datasets" in refused("detection", "cppe-5")
