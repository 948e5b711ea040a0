"""Images with annotations in COCO's format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torchvision import tv_tensors

from compress.core.errors import InputError
from evaluators.datasets.boxes import BoxReader, ImageWithObjects, Objects, Wrong, size_of
from evaluators.datasets.coco_file import CocoFile, CocoObject, read_coco
from evaluators.datasets.dataset import DataFacts, datasets
from evaluators.datasets.decoding import read
from evaluators.datasets.joint import IGNORED
from evaluators.datasets.sample_sets import BACKGROUND, SampleImages, SampleSet, looked_at
from evaluators.datasets.samples import Samples

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig


@datasets.register("coco")
class CocoConfig(SampleImages):
    """Images with boxes, or with masks, by annotation files in COCO's json format (instances).

    Classes are the file's categories in the order of their ids, after the background. Crowds are not trained on; in
    evaluation finding them or not does not count. For segmentation the outlines are drawn, small ones over large ones,
    crowds as pixels that do not count. Images without objects are legal.
    """

    name: Literal["coco"]
    path: str = Field(min_length=1, description="the directory that the following paths begin in")
    train_json: str | None = Field(
        "annotations/instances_train2017.json", description="annotations of training images; null: there are none"
    )
    train_images: str = Field("train2017", description="folder of the training images")
    test_json: str = Field("annotations/instances_val2017.json", description="annotations of test images")
    test_images: str = Field("val2017", description="folder of the test images")
    keep_ids: bool = Field(
        False, description="the classes are the category ids themselves, as torchvision's weights for COCO have them"
    )
    wrong_boxes: Wrong = Field(
        "refuse", description="drop: empty boxes are left out, and others cut at the image's edges (COCO has a few)"
    )

    def kinds(self) -> tuple[str, ...]:
        """Return boxes, masks."""
        return ("boxes", "masks")

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield the folders and files."""
        root = Path(self.path).expanduser()
        yield "path", self.path
        if root.is_dir():
            for key in ("test_json", "test_images", *(("train_json", "train_images") if self.train_json else ())):
                yield key, str(root / getattr(self, key))

    def describe(self) -> DataFacts:
        """Return the number of classes with the background; image size and channels are the recipe's."""
        return DataFacts(len(self._class_names(self._files()[1])), self.image_size, self.channels)

    def open(self, task: TaskConfig) -> SampleSet:
        """Read the annotations, and see whether the images are there."""
        train, test = self._files()
        names = self._class_names(test)
        masks = task.targets == "masks"
        if masks and len(names) > IGNORED:
            raise InputError(f"data: masks hold up to {IGNORED} classes, the categories make {len(names)} of them")
        numbers = {ident: ident if self.keep_ids else place for place, ident in enumerate(sorted(test.categories), 1)}
        splits = [
            None if file is None else self._samples(file, key, numbers, masks)
            for file, key in ((train, "train_images"), (test, "test_images"))
        ]
        return SampleSet(splits[0], splits[1], names)

    def _files(self) -> tuple[CocoFile | None, CocoFile]:
        root = Path(self.path).expanduser()
        test = read_coco(root / self.test_json, "test_json", self.wrong_boxes)
        if self.train_json is None:
            return None, test
        train = read_coco(root / self.train_json, "train_json", self.wrong_boxes)
        if train.categories != test.categories:
            apart = sorted(set(train.categories.items()) ^ set(test.categories.items()))
            raise InputError(
                f"data.train_json: it has other categories than test_json, such as {apart[0][1]!r} with the id "
                f"{apart[0][0]} in one of them; both need the same"
            )
        return train, test

    def _class_names(self, file: CocoFile) -> list[str]:
        if not self.keep_ids:
            return [BACKGROUND, *(file.categories[ident] for ident in sorted(file.categories))]
        lowest, highest = min(file.categories), max(file.categories)
        if lowest < 1 or highest > 10_000:
            raise InputError(f"data.keep_ids: category ids go from {lowest} to {highest}; allowed: 1 to 10000")
        return [BACKGROUND, *(file.categories.get(ident, f"(no {ident})") for ident in range(1, highest + 1))]

    def _samples(self, file: CocoFile, key: str, numbers: Mapping[int, int], masks: bool) -> Samples:
        folder = Path(self.path).expanduser() / getattr(self, key)
        there = _listed(folder, key)
        entries: list[ImageWithObjects] = []
        outlines: list[list[CocoObject]] = []
        for ident, image in file.images.items():
            path = folder / image.file_name
            if image.file_name not in there and not path.is_file():
                raise InputError(f"data.{key}: there is no file {str(path)!r}, which the annotations name")
            found = file.objects.get(ident, [])
            labels = [numbers[each.category] for each in found]
            objects = Objects([each.box for each in found], labels, [each.crowd for each in found])
            entries.append(ImageWithObjects(str(path), image.size, objects))
            outlines.append(found)
        reader = BoxReader(entries)
        if masks:
            drawn = Samples(_MaskReader(entries, outlines), range(len(entries)), name=reader.name)
            return looked_at(drawn, f"data.{key}")
        return Samples(reader, range(len(entries)), name=reader.name)


def _listed(folder: Path, key: str) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise InputError(f"data.{key}: {str(folder)!r} cannot be listed ({error.strerror or error})") from error


@dataclass(frozen=True)
class _MaskReader:
    """Reads image files, and draws the outlines of their objects."""

    images: list[ImageWithObjects]
    outlines: list[list[CocoObject]]

    def __call__(self, index: int) -> tuple[Any, tv_tensors.Mask]:
        entry, found = self.images[index], self.outlines[index]
        image = read(entry.path, entry.size)
        if size_of(image) != entry.size:
            raise InputError("it has another size than its annotations are for")
        mask = np.zeros(entry.size, np.uint8)
        drawn = [
            (_pixels(each, entry.size), label, each.crowd)
            for each, label in zip(found, entry.objects.labels, strict=True)
        ]
        for pixels, label, crowd in sorted(drawn, key=lambda each: -int(each[0].sum())):
            mask[pixels] = IGNORED if crowd else label
        return image, tv_tensors.Mask(torch.from_numpy(mask))


def _pixels(found: CocoObject, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return which pixels (H, W) belong to an object."""
    from pycocotools import mask as outlines

    try:
        runs = outlines.frPyObjects(found.outline, *size) if _uncoded(found.outline) else found.outline
        whole = outlines.merge(runs) if isinstance(runs, list) else runs
        pixels: np.ndarray[Any, Any] = outlines.decode(whole).astype(bool)
    except Exception as error:  # pycocotools raises nearly anything of what is no outline
        raise InputError(f"an object has no outline that pycocotools can draw ({error})") from error
    if pixels.shape != size:
        raise InputError(
            f"an outline is for {pixels.shape[1]}x{pixels.shape[0]} pixels, the image has {size[1]}x{size[0]}"
        )
    return pixels


def _uncoded(outline: Any) -> bool:
    """Whether an outline is polygons, or run lengths that are written out."""
    return isinstance(outline, list) or (isinstance(outline, Mapping) and isinstance(outline.get("counts"), list))
