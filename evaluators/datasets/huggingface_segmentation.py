"""Images with masks of the Hugging Face hub, or in its formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from torchvision import tv_tensors

from evaluators.datasets.dataset import DataFacts, datasets
from evaluators.datasets.decoding import read
from evaluators.datasets.hub import Hub, image_file
from evaluators.datasets.mask_files import Classes, Ids, MaskReader, check_ids, named, with_mask
from evaluators.datasets.sample_sets import SampleSet, looked_at
from evaluators.datasets.samples import Samples

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig


@datasets.register("huggingface_segmentation")
class HuggingFaceSegmentationConfig(Hub):
    """A data set of the Hugging Face hub, or in its formats, with a column of masks: class numbers, 255 does not count.

    For scene_parse_150, whose 0 does not count either: `classes: 150, ids: {1: 0, 2: 1, ...}`.
    """

    name: Literal["huggingface_segmentation"]
    mask_key: str = Field("annotation", description="column of the masks")
    classes: Classes = Field(description="how many classes there are, or their names in the order of their numbers")
    ids: Ids | None = Field(
        None, description="class number of each id in the masks, of other ids none; null: they hold class numbers"
    )

    @model_validator(mode="after")
    def _possible(self) -> HuggingFaceSegmentationConfig:
        check_ids(self.ids, self.classes)
        return self

    def kinds(self) -> tuple[str, ...]:
        """Return masks."""
        return ("masks",)

    def describe(self) -> DataFacts:
        """Return the number of classes; image size and channels are the recipe's."""
        return DataFacts(len(named(self.classes)), self.image_size, self.channels)

    def open(self, task: TaskConfig) -> SampleSet:
        """Open both splits, and read some of their rows."""
        names = named(self.classes)
        reader = MaskReader(len(names), self.ids)
        splits = [
            None
            if rows is None
            else looked_at(
                Samples(_Rows(rows, self.image_key, self.mask_key, reader), range(len(rows)), name="row {}".format),
                f"data.{key}",
            )
            for key, rows in self.splits([("mask_key", self.mask_key)])
        ]
        return SampleSet(splits[0], splits[1], names)


@dataclass(frozen=True)
class _Rows:
    rows: Any
    image_key: str
    mask_key: str
    reader: MaskReader

    def __call__(self, index: int) -> tuple[Any, tv_tensors.Mask]:
        row = self.rows[index]
        numbers = self.reader(image_file(row[self.mask_key]), self.mask_key)
        return with_mask(read(image_file(row[self.image_key]), numbers.shape), numbers, self.mask_key)
