"""Images with annotations in COCO's format."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from annotated import coco, coco_annotations, picture
from pydantic import TypeAdapter

from compress.core.errors import InputError
from compress.testing.datasets import check_dataset
from evaluators.datasets import DataConfig as DataConfigType
from evaluators.datasets import DataFacts
from evaluators.tasks import tasks

adapter: TypeAdapter[Any] = TypeAdapter(DataConfigType)
NATIVE = {"image_size": 48, "workers": 0, "flip": 0, "scale": (1, 1), "color_jitter": 0, "mean": [0], "std": [1]}


def config(folder: Path, **options: Any) -> Any:
    return adapter.validate_python({"name": "coco", "path": str(folder), **NATIVE, **options})


def first(folder: Path, task: str = "detection", **options: Any) -> Any:
    data = config(folder, **options).load(tasks.get(task)())
    return next(iter(data.test.batches()))


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        config(folder, **options).describe()
        list(config(folder, **options).load(tasks.get("detection")()).test.batches())
    (sentence,) = caught.value.problems
    assert "\n" not in sentence and sentence.startswith("data"), sentence
    return sentence


def test_boxes_are_those_of_the_file_in_pixels_of_the_input(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    assert config(folder).describe() == DataFacts(3, 48, None)
    batch = first(folder)  # images of 48x32 lie in the middle of 48x48
    assert [each.shape for each in batch.inputs] == [(3, 48, 48)] * 4
    assert batch.targets[0]["boxes"].tolist() == [[4, 13, 24, 28], [10, 16, 16, 20]]
    assert [each["labels"].tolist() for each in batch.targets] == [[1, 2], [2], [1, 1], []]
    assert batch.targets[2]["iscrowd"].tolist() == [0, 1] and batch.targets[3]["boxes"].shape == (0, 4)
    twice = first(folder, image_size=96).targets[0]["boxes"]
    assert torch.equal(twice, 2 * batch.targets[0]["boxes"])


def test_masks_are_drawn_of_outlines_small_ones_on_top(tmp_path: Path) -> None:
    batch = first(coco(tmp_path), "segmentation")
    assert batch.targets.shape == (4, 48, 48) and bool((batch.targets[:, :8] == 255).all())
    wanted = torch.zeros(32, 48, dtype=torch.int64)
    wanted[5:20, 4:24], wanted[8:12, 10:16] = 1, 2
    assert torch.equal(batch.targets[0, 8:40], wanted)
    assert bool((batch.targets[2, 8:40, 6:10] == 255).all())  # a crowd
    assert batch.targets[3, 8:40].unique().tolist() == [0]


def test_classes_may_be_the_category_ids(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    data = config(folder, keep_ids=True).load(tasks.get("detection")())
    assert data.class_names == ["background", "person", "(no 2)", "car"] and data.task.num_outputs == 4
    assert [each["labels"].tolist() for each in next(iter(data.test.batches())).targets][1] == [3]
    assert config(folder).load(tasks.get("detection")()).class_names == ["background", "person", "car"]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_it_is_what_data_sets_have_to_be(tmp_path: Path, task: str) -> None:
    changed = config(coco(tmp_path), batch_size=2, scale=(0.5, 2.0), flip=0.5, color_jitter=0.3)
    check_dataset(changed, tasks.get(task)())


def test_only_test_images_are_needed(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    (folder / "annotations" / "instances_train2017.json").unlink()
    data = config(folder, train_json=None, limit_test=2).load(tasks.get("detection")())
    assert data.train is None and data.test.num_samples == 2


def box(*values: Any) -> dict[str, Any]:
    return {"bbox": list(values)}


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "outside": (box(40, 5, 20, 10), ["annotation 1", "(40, 5) to (60, 15)", "outside", "(48, 32)", "wrong_boxes"]),
    "above": (box(4, -9, 10, 10), ["annotation 1", "outside"]),
    "inverted": (box(20, 5, -4, 10), ["annotation 1", "holds nothing", "right of left"]),
    "empty": (box(20, 5, 0, 10), ["annotation 1", "holds nothing", "wrong_boxes"]),
    "three numbers": (box(1, 2, 3), ["annotation 1", "[1, 2, 3]", "four finite numbers"]),
    "no number": (box(1, 2, 3, float("nan")), ["annotation 1", "nan", "four finite numbers"]),
    "text": ({"bbox": "1234"}, ["annotation 1", "four finite numbers"]),
    "no box": ({"bbox": None}, ["annotation 1", "four finite numbers"]),
    "unknown image": ({"image_id": 99}, ["annotation 1", "image_id 99", "none of the images", "10, 11, 12, 13"]),
    "unknown category": ({"category_id": 2}, ["annotation 1", "category_id 2", "none of the categories", "1, 3"]),
    "no image": ({"image_id": None}, ["annotation 1", "no image_id"]),
    "text for a flag": ({"iscrowd": "0"}, ["annotation 1", "iscrowd: '0'", "allowed: 0, 1"]),
    "odd image": ({"image_id": "10"}, ["annotation 1", "image_id: '10'", "whole number"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_annotations_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    change, words = WRONG[name]
    annotations = coco_annotations()["annotations"]
    annotations[0] |= change
    sentence = refused(coco(tmp_path, annotations=annotations))
    assert all(word in sentence for word in ["data.train_json", "instances_train2017.json", *words]), sentence


FILES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no images": ({"images": []}, ["train_json", "no images"]),
    "no section": ({"categories": None}, ["train_json", "images, annotations, categories"]),
    "no objects but crowds": (
        {"annotations": [each | {"iscrowd": 1} for each in coco_annotations()["annotations"]]}, ["but crowds"],
    ),
    "no objects": ({"annotations": []}, ["train_json", "no object in any image"]),
    "an entry is no mapping": ({"annotations": [7]}, ["annotation 0 is 7"]),
    "an image without a name": ({"images": [{"id": 10, "height": 32, "width": 48}]}, ["id 10 of images", "file_name"]),
    "an image without a size": ({"images": [{"id": 10, "file_name": "10.png"}]}, ["id 10 of images", "no height"]),
    "an id twice": ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, ["two of categories", "id 1"]),
    "other categories": (
        {"categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "man"}]}, ["other categories", "'man'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_wrong_files_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    changes, words = FILES[name]
    sentence = refused(coco(tmp_path, **copy.deepcopy(changes)))
    assert all(word in sentence for word in words), sentence


def test_damaged_and_absent_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    (folder / "val2017" / "11.png").unlink()
    assert "11.png" in refused(folder) and "test_images" in refused(folder)
    picture(folder / "val2017" / "11.png", size=(20, 20))
    assert "11.png: it has 20x20 pixels, its annotations are for 48x32" in refused(folder)
    (folder / "val2017" / "11.png").write_bytes(b"no image")
    assert "cannot read image" in refused(folder)
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text()[:-20])
    assert "instances_train2017.json" in refused(folder) and "damaged" in refused(folder)
    path.unlink()
    assert "there is no file" in refused(folder)
    assert [key for key, place in config(folder).paths() if not Path(place).exists()] == ["train_json"]


def test_wrong_boxes_may_be_dropped_or_cut(tmp_path: Path) -> None:
    annotations = coco_annotations()["annotations"]
    annotations[0]["bbox"], annotations[1]["bbox"] = [40, 5, 20, 10], [20, 5, 0, 10]
    data = config(coco(tmp_path, annotations=annotations), wrong_boxes="drop").load(tasks.get("detection")())
    found = {batch.targets[0]["labels"].tolist()[0]: batch.targets[0]["boxes"].tolist() for batch in
             config(tmp_path, wrong_boxes="drop", batch_size=1, limit_train=1).load(tasks.get("detection")())
             .train.epoch(0)}  # fmt: skip
    assert data.train.num_samples == 4 and found == {1: [[40, 13, 48, 23]]}


def test_outlines_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    for outline in ([], [[1, 2]], {"size": [3, 3], "counts": [9]}, {"size": [32, 48], "counts": "§"}, "x"):
        content = coco_annotations()
        content["annotations"][0]["segmentation"] = outline
        (coco(tmp_path) / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"data.test_images: .*10\.png: an (object|outline)"):
            config(tmp_path).load(tasks.get("segmentation")())
