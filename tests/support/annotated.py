"""Small data sets with masks and boxes, written as the tools of the field write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (32, 48)
"""Height and width of images."""


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """Write a colour image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def coco_annotations() -> dict[str, Any]:
    """Return annotations of four images: two objects, one, a crowd beside one, none."""

    def thing(number: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
        left, top, width, height = box
        outline = [[left, top, left + width, top, left + width, top + height, left, top + height]]
        return {"id": number, "image_id": image, "category_id": category, "bbox": box, "segmentation": outline} | more

    height, width = SIZE
    # a crowd is written as run lengths, down the columns: 6 columns, then 4, then the rest
    runs = {"size": [height, width], "counts": [6 * height, 4 * height, (width - 10) * height]}
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": height, "width": width} for n in (10, 11, 12, 13)],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
        "annotations": [
            thing(1, 10, 1, [4, 5, 20, 15]),
            thing(2, 10, 3, [10, 8, 6, 4]),
            thing(3, 11, 3, [0, 0, 48, 32]),
            thing(4, 12, 1, [20, 2, 10, 10]),
            thing(5, 12, 1, [6, 0, 4, 32], segmentation=runs, iscrowd=1),
        ],
    }


def coco(folder: Path, **changes: Any) -> Path:
    """Write a data set in COCO's format; `changes` are other sections of the training annotations."""
    for split in ("train2017", "val2017"):
        content = coco_annotations()
        for image in content["images"]:
            picture(folder / split / image["file_name"], image["id"])
        if split == "train2017":
            content |= changes
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def voc_xml(*objects: tuple[str, tuple[int, int, int, int], int]) -> str:
    """Return the annotation of an image with objects (class, corners counted from 1, whether difficult)."""
    parts = [
        f"<object><name>{name}</name><difficult>{hard}</difficult><part><name>head</name></part><bndbox>"
        f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box, hard in objects
    ]
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(parts)}</annotation>"


def voc(folder: Path) -> Path:
    """Write a data set in Pascal VOC's layout: images a and b to train on, c and d to evaluate on."""
    for part in ("Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for number, name in enumerate("abcd"):
        picture(folder / "JPEGImages" / f"{name}.jpg", number)
        objects = [("dog", (5, 6, 20, 21), 0), ("cat", (1, 1, 48, 32), 1)] if name != "d" else []
        (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(*objects))
        mask = np.zeros(SIZE, np.uint8)
        mask[5:21, 4:20], mask[21:23] = 12, 255
        image = Image.fromarray(mask, "P")
        image.putpalette(list(range(256)) * 3)
        image.save(folder / "SegmentationClass" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        (folder / "ImageSets" / kind / "train.txt").write_text("a\nb\n")
        (folder / "ImageSets" / kind / "val.txt").write_text("c\nd\n\n")
    return folder


def mask_file(path: Path, values: Any) -> Path:
    """Write a mask of one channel; `values` fill it, or are its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(values), SIZE if np.ndim(values) < 2 else np.shape(values)).copy()).save(
        path
    )
    return path
