"""Images in the layout of Pascal VOC, and folders of images and masks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated import SIZE, mask_file, picture, voc, voc_xml
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from compress.core.errors import InputError
from compress.testing.datasets import check_dataset
from evaluators.datasets import Data, DataFacts
from evaluators.datasets import DataConfig as DataConfigType
from evaluators.datasets.masks import CITYSCAPES_IDS, LAYOUTS
from evaluators.tasks import tasks

adapter: TypeAdapter[Any] = TypeAdapter(DataConfigType)
NATIVE = {"image_size": 48, "workers": 0, "flip": 0, "scale": (1, 1), "color_jitter": 0}
SEGMENTATION, DETECTION = (tasks.get(name)() for name in ("segmentation", "detection"))


def config(name: str, folder: Path, **options: Any) -> Any:
    return adapter.validate_python({"name": name, "path": str(folder), **NATIVE, **options})


def loaded(name: str, folder: Path, task: Any = SEGMENTATION, **options: Any) -> Data:
    data = config(name, folder, **options).load(task)
    assert isinstance(data, Data)
    return data


def batch_of(data: Data) -> Any:
    assert data.test is not None
    return next(iter(data.test.batches()))


def refused(name: str, folder: Path, task: Any = SEGMENTATION, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        loaded(name, folder, task, **options)
    (sentence,) = caught.value.problems
    assert "\n" not in sentence and sentence.startswith("data."), sentence
    return sentence


def plain(folder: Path, **masks: Any) -> Path:
    """Write three pairs to train on and two to evaluate on; `masks` are others for some of the training images."""
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            picture(folder / split / "images" / f"{number}.jpg", number)
            mask_file(folder / split / "masks" / f"{number}.png", masks.get(f"m{number}", np.uint8(number % 3)))
    return folder


NAMED = {"classes": ["ground", "tree", "car"]}


def test_boxes_of_voc_are_counted_from_one(tmp_path: Path) -> None:
    data = loaded("voc", voc(tmp_path), DETECTION)
    batch = batch_of(data)
    assert data.class_names[:2] == ["background", "aeroplane"] and data.task.num_outputs == 21
    assert batch.targets[0]["boxes"].tolist() == [[4, 13, 20, 29], [0, 8, 48, 40]]
    assert batch.targets[0]["labels"].tolist() == [12, 8] and batch.targets[0]["iscrowd"].tolist() == [0, 1]
    assert batch.targets[1]["boxes"].shape == (0, 4)


def test_masks_of_voc_are_the_numbers_in_the_palette(tmp_path: Path) -> None:
    data = loaded("voc", voc(tmp_path))
    masks = batch_of(data).targets[:, 8:40]
    assert masks.unique().tolist() == [0, 12, 255] and bool((masks[:, 5:21, 4:20] == 12).all())
    assert data.class_names[12] == "dog"


@pytest.mark.parametrize("task", [DETECTION, SEGMENTATION])
def test_voc_is_what_data_sets_have_to_be(tmp_path: Path, task: Any) -> None:
    check_dataset(config("voc", voc(tmp_path), batch_size=1, flip=0.5, scale=(0.5, 2)), task)


def test_wrong_annotations_of_voc_are_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = voc(tmp_path)
    path = folder / "Annotations" / "a.xml"
    for text, words in {
        voc_xml(("cow", (5, 6, 60, 21), 0)): ["outside", "(48, 32)"],
        voc_xml(("cow", (20, 6, 5, 21), 0)): ["holds nothing"],
        voc_xml(("gnu", (5, 6, 20, 21), 0)): ["'gnu'", "aeroplane", "data.class_names"],
        voc_xml(("cow", (5, 6, 20, "x"), 0)): ["four finite numbers"],  # type: ignore[arg-type]
        voc_xml().replace("48", "many"): ["size/width", "'many'"],
        voc_xml()[:-3]: ["damaged"],
    }.items():
        path.write_text(text)
        sentence = refused("voc", folder, DETECTION)
        assert all(word in sentence for word in ["data.train_split", "a.xml", *words]), sentence
    path.write_text(voc_xml())
    (folder / "Annotations" / "b.xml").write_text(voc_xml())
    assert "no image of 'train' holds an object" in refused("voc", folder, DETECTION)
    (folder / "JPEGImages" / "a.jpg").unlink()
    assert "there is no file" in refused("voc", folder, DETECTION) and "a.jpg" in refused("voc", folder)
    assert "trainval.txt" in refused("voc", folder, train_split="trainval")


def test_plain_folders_of_images_and_masks(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    check_dataset(config("masks", folder, batch_size=2, flip=0.5, scale=(0.5, 2), **NAMED), SEGMENTATION)
    assert config("masks", folder, **NAMED).describe() == DataFacts(3, 48, None)
    masks = batch_of(loaded("masks", folder, **NAMED)).targets[:, 8:40]
    assert [mask.unique().tolist() for mask in masks] == [[0], [1]]
    ids = batch_of(loaded("masks", folder, ids={0: 2, 1: 255}, **NAMED)).targets[:, 8:40]
    assert [mask.unique().tolist() for mask in ids] == [[2], [255]]
    shutil.rmtree(folder / "train")
    assert loaded("masks", folder, **NAMED).train is None


def test_of_the_34_ids_of_cityscapes_19_become_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for town, number in (("ulm", 0), ("bonn", 1)):
            name = f"{town}/{town}_00000{number}_000019"
            picture(tmp_path / "leftImg8bit" / split / f"{name}_leftImg8bit.png", number)
            strips = np.repeat(np.arange(-1, 47).clip(0, 33), 32).reshape(48, 32).T.astype(np.uint8)
            mask_file(tmp_path / "gtFine" / split / f"{name}_gtFine_labelIds.png", strips)
            mask_file(tmp_path / "gtFine" / split / f"{name}_gtFine_instanceIds.png", np.uint16(26001))
    data = loaded("masks", tmp_path, layout="cityscapes")
    batch = batch_of(data)
    assert len(data.class_names) == data.task.num_outputs == 19 and len(batch) == 2
    row = batch.targets[0, 20].tolist()
    wanted = [CITYSCAPES_IDS.index(n) if n in CITYSCAPES_IDS else 255 for n in np.arange(-1, 47).clip(0, 33)]
    assert row == wanted and data.class_names[row[8]] == "road" and data.class_names[row[27]] == "car"
    assert len(CITYSCAPES_IDS) == len(LAYOUTS["cityscapes"].class_names) == 19


def test_other_things_of_ade20k_do_not_count(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        picture(tmp_path / "images" / split / "ADE_1.jpg")
        values = np.zeros(SIZE, np.uint8)
        values[:, 10:20], values[:, 20:] = 1, 150
        mask_file(tmp_path / "annotations" / split / "ADE_1.png", values)
    data = loaded("masks", tmp_path, layout="ade20k")
    assert data.task.num_outputs == 150 and set(batch_of(data).targets[0, 20].tolist()) == {255, 0, 149}


def test_wrong_masks_are_refused_before_any_training_in_one_sentence(tmp_path: Path) -> None:
    where = str(tmp_path / "train" / "masks" / "1.png")
    for number, (values, words) in enumerate((
        (np.zeros((16, 24), np.uint8), ["24x16", "48x32"]),
        (np.uint8(3), ["the class 3", "0 to 2", "255"]),
        (np.uint16(300), ["holds 300", "0 to 255"]),
        (np.zeros((*SIZE, 3), np.uint8), ["mode RGB", "one channel of class numbers"]),
        (np.float32(1), ["mode F", "one channel"]),
    )):  # fmt: skip
        folder = plain(tmp_path / str(number))
        path = folder / "train" / "masks" / "1.png"
        if getattr(values, "dtype", None) == np.float32:
            path.unlink()
            mask_file(path.with_suffix(".tiff"), values)
        else:
            mask_file(path, values)
        sentence = refused("masks", folder, **NAMED)
        assert all(word in sentence for word in ["train", "1.", *words]), sentence
    folder = plain(tmp_path)
    Path(where).write_bytes(b"no image")
    assert "cannot be read" in refused("masks", folder, **NAMED) and where in refused("masks", folder, **NAMED)
    mask_file(Path(where).with_suffix(".gif"), np.uint8(0))
    assert "'1.gif' and '1.png'" in refused("masks", folder, **NAMED)
    Path(where).with_suffix(".gif").unlink()
    Path(where).unlink()
    assert "1 of 3 images have no mask" in refused("masks", folder, **NAMED) and "'1.jpg'" in refused(
        "masks", folder, **NAMED
    )
    assert "leftImg8bit/val" in refused("masks", folder, layout="cityscapes")
    (folder / "val" / "images" / "0.jpg").write_bytes(b"no image")
    mask_file(Path(where), np.uint8(0))
    assert "cannot read image" in refused("masks", folder, **NAMED)


def test_masks_without_a_pixel_that_counts_are_refused(tmp_path: Path) -> None:
    loaded("masks", plain(tmp_path, m1=np.uint8(255)), **NAMED)
    plain(tmp_path, **{f"m{number}": np.uint8(255) for number in range(3)})
    assert "no mask that was looked at holds a pixel that counts" in refused("masks", tmp_path, **NAMED)
    assert "ids without a class" in refused("masks", plain(tmp_path), ids={7: 1}, **NAMED)


def test_masks_that_are_not_among_the_first_are_refused_when_they_are_met(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "val" / "images" / f"{number:02}.png", size=(8, 8))
        mask_file(tmp_path / "val" / "masks" / f"{number:02}.png", np.zeros((8, 8), np.uint8))
    data = loaded("masks", tmp_path, **NAMED)
    for number in range(40):
        mask_file(tmp_path / "val" / "masks" / f"{number:02}.png", np.full((8, 8), 9, np.uint8))
    with pytest.raises(
        InputError, match=r"cannot read image .*00\.png: its mask .* holds the class 9; allowed: 0 to 2"
    ):
        batch_of(data)


def test_options_that_do_not_fit_are_refused() -> None:
    for options, words in (
        ({}, "classes: missing"),
        ({"layout": "ade20k", **NAMED}, "its own classes"),
        ({"ids": {4: 3}, **NAMED}, "none of the 3 classes"),
        ({"ids": {300: 1}, **NAMED}, "255"),
        ({"scale": [2, 1], **NAMED}, "the smaller factor comes first; got 2, 1"),
        ({"classes": ["one"]}, "at least 2"),
    ):
        with pytest.raises(ValidationError, match=words):
            config("masks", Path(), **options)


def test_a_mask_of_the_mode_of_one_bit_is_two_classes(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            Image.fromarray(np.ones(SIZE, bool)).save(folder / split / "masks" / f"{number}.png")
    assert 1 in batch_of(loaded("masks", folder, classes=2)).targets.unique().tolist()
