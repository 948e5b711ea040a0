"""Images with boxes of the Hugging Face hub, or in its formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets.boxes import Corners, Wrong, corners, size_of, within
from evaluators.datasets.dataset import DataFacts, datasets
from evaluators.datasets.decoding import read
from evaluators.datasets.hub import Hub, image_file
from evaluators.datasets.joint import boxed
from evaluators.datasets.sample_sets import BACKGROUND, SampleSet, looked_at
from evaluators.datasets.samples import Samples

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig


@datasets.register("huggingface_detection")
class HuggingFaceDetectionConfig(Hub):
    """A data set of the Hugging Face hub, or in its formats, with a column of objects: a box and a category each.

    As cppe-5 has them: `objects: {bbox: [[left, top, width, height], ...], category: [0, ...]}`, or a list of such
    objects. Category numbers begin with 0; as labels, after the background, with 1.
    """

    name: Literal["huggingface_detection"]
    test_split: str = Field("test", description="split to evaluate on")
    objects_key: str = Field("objects", description="column of the objects")
    box_key: str = Field("bbox", description="what their boxes are called, in pixels")
    label_key: str = Field("category", description="what their categories are called")
    box_format: Literal["xywh", "xyxy"] = Field("xywh", description="left, top, then width, height or right, bottom")
    class_names: list[str] | None = Field(
        None, min_length=1, description="the categories in the order of their numbers; null: as the data set has them"
    )
    wrong_boxes: Wrong = Field(
        "refuse", description="drop: empty boxes are left out, and others cut at the image's edges"
    )

    def kinds(self) -> tuple[str, ...]:
        """Return boxes."""
        return ("boxes",)

    def describe(self) -> DataFacts:
        """Return the number of classes with the background; image size and channels are the recipe's."""
        rows = [rows for _, rows in self._rows()]
        return DataFacts(len(self._names(rows[1])) + 1, self.image_size, self.channels)

    def open(self, task: TaskConfig) -> SampleSet:
        """Open both splits, check all objects, and read some of the rows."""
        found = dict(self._rows())
        names = self._names(found["test_split"])
        splits = [None if rows is None else self._samples(key, rows, names) for key, rows in found.items()]
        return SampleSet(splits[0], splits[1], [BACKGROUND, *names])

    def _rows(self) -> Iterator[tuple[str, Any]]:
        return self.splits([("objects_key", self.objects_key)])

    def _names(self, rows: Any) -> list[str]:
        if self.class_names is not None:
            return self.class_names
        feature = _inner(rows.features[self.objects_key])
        names = getattr(_inner(feature.get(self.label_key)), "names", None) if isinstance(feature, dict) else None
        if not names:
            raise InputError(
                f"data.class_names: missing; {self.label_key!r} of {self.objects_key!r} has no names of its own in "
                f"{self.dataset!r}"
            )
        return [str(name) for name in names]

    def _samples(self, key: str, rows: Any, names: list[str]) -> Samples:
        objects = []
        for number, row in enumerate(rows.select_columns([self.objects_key])):
            where = f"data.{key}: row {number} of {self.dataset!r}"
            boxes, labels = self._objects(where, row[self.objects_key])
            wrong = next((label for label in labels if not _known(label, names)), None)
            if wrong is not None:
                raise InputError(f"{where} has the category {wrong!r}; allowed: 0 to {len(names) - 1} ({names[-1]})")
            objects.append(([corners(where, box, self.box_format) for box in boxes], labels))
        if not any(labels for _, labels in objects):
            raise InputError(f"data.{key}: no row of {self.dataset!r} holds an object; at least one is needed")
        reader = _Boxes(rows, self.image_key, objects, self.wrong_boxes)
        return looked_at(Samples(reader, range(len(rows)), name="row {}".format), f"data.{key}")

    def _objects(self, where: str, value: Any) -> tuple[list[Any], list[Any]]:
        """Return boxes and categories, whether these are lists in a mapping or mappings in a list."""
        found: list[list[Any]] = []
        for key in (self.box_key, self.label_key):
            parts = value if isinstance(value, list) else [value]
            if any(not isinstance(part, dict) or key not in part for part in parts):
                raise InputError(f"{where} has {self.objects_key} without {key!r}; see data.box_key and data.label_key")
            found.append([part[key] for part in parts] if isinstance(value, list) else list(value[key]))
        if len(found[0]) != len(found[1]):
            raise InputError(f"{where} has {len(found[0])} boxes and {len(found[1])} categories; one of each is needed")
        return found[0], found[1]


def _known(label: Any, names: list[str]) -> bool:
    return isinstance(label, int) and 0 <= label < len(names)


def _inner(feature: Any) -> Any:
    """Return what a sequence is of, anything else as it is."""
    return getattr(feature, "feature", feature)


@dataclass(frozen=True)
class _Boxes:
    rows: Any
    image_key: str
    objects: list[tuple[list[Corners], list[int]]]
    wrong: Wrong

    def __call__(self, index: int) -> tuple[Any, dict[str, Tensor]]:
        image = read(image_file(self.rows[index][self.image_key]))
        size, (boxes, labels) = size_of(image), self.objects[index]
        cut = [(within("it", box, size, self.wrong), label + 1) for box, label in zip(boxes, labels, strict=True)]
        left = [(box, label) for box, label in cut if box is not None]
        numbers = torch.tensor([label for _, label in left], dtype=torch.int64)
        return image, boxed(torch.tensor([box for box, _ in left], dtype=torch.float32), numbers, size)
