"""Folders of images and folders of masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from compress.core.errors import InputError
from evaluators.datasets.dataset import DataFacts, datasets
from evaluators.datasets.decoding import ENDINGS
from evaluators.datasets.mask_files import Classes, Ids, MaskReader, check_ids, mask_samples, named
from evaluators.datasets.sample_sets import SampleImages, SampleSet
from evaluators.datasets.samples import Samples

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Of the 34 ids in labelIds.png those that are evaluated, in the order of the 19 classes above."""


@dataclass(frozen=True)
class Layout:
    """Where files lie, and what is in masks.

    Attributes:
        train: folders of the images and the masks to train on, below the path.
        tests: the same to evaluate on; the first that is there counts.
        image_end: how names of images end; "": with a dot and any of `ENDINGS`.
        mask_end: how the mask of the same beginning ends; "": the same way.
        class_names: of the classes; (): the recipe names them.
        ids: the class of each id in masks; None: they hold class numbers.
    """

    train: tuple[str, str]
    tests: tuple[tuple[str, str], ...]
    image_end: str = ""
    mask_end: str = ""
    class_names: tuple[str, ...] = ()
    ids: dict[int, int] | None = None


LAYOUTS = {
    "plain": Layout(
        ("train/images", "train/masks"),
        tuple((f"{name}/images", f"{name}/masks") for name in ("val", "test", "validation")),
    ),
    "cityscapes": Layout(
        ("leftImg8bit/train", "gtFine/train"),
        (("leftImg8bit/val", "gtFine/val"),),
        "_leftImg8bit.png",
        "_gtFine_labelIds.png",
        CITYSCAPES,
        {ident: number for number, ident in enumerate(CITYSCAPES_IDS)},
    ),
    "ade20k": Layout(
        ("images/training", "annotations/training"),
        (("images/validation", "annotations/validation"),),
        class_names=tuple(f"class {number}" for number in range(1, 151)),
        ids={number: number - 1 for number in range(1, 151)},
    ),
}


@datasets.register("masks")
class MasksConfig(SampleImages):
    """Folders of images and folders of masks of the same names: one channel of class numbers, 255 does not count.

    Layouts: `plain` has train/images, train/masks and val/images, val/masks (or test/, validation/; folders within
    them are looked into as well) and needs `classes`, the first of which has the number 0. `cityscapes` has
    leftImg8bit/ and gtFine/ with *_labelIds.png, of whose 34 ids 19 become classes and the others do not count.
    `ade20k` is the benchmark of 150 classes (ADEChallengeData2016): its numbers 1 to 150 become 0 to 149, its 0 (other
    things) does not count.
    """

    name: Literal["masks"]
    path: str = Field(min_length=1, description="the directory that holds the folders")
    layout: Literal["plain", "cityscapes", "ade20k"] = Field("plain", description="what the folders are called")
    classes: Classes | None = Field(
        None, description="for plain: how many classes there are, or their names in the order of their numbers"
    )
    ids: Ids | None = Field(
        None, description="class number of each id in the masks, of other ids none; null: they hold class numbers"
    )

    @model_validator(mode="after")
    def _named(self) -> MasksConfig:
        if self.layout == "plain" and self.classes is None:
            raise ValueError("classes: missing; layout plain needs their number, or their names in order")
        if self.layout != "plain" and (self.classes is not None or self.ids is not None):
            raise ValueError(f"layout {self.layout} has its own classes; leave classes and ids out")
        check_ids(self.ids, self.classes or 0)
        return self

    def kinds(self) -> tuple[str, ...]:
        """Return masks."""
        return ("masks",)

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield the folder."""
        yield "path", self.path

    def describe(self) -> DataFacts:
        """Return the number of classes; image size and channels are the recipe's."""
        return DataFacts(len(self._names()), self.image_size, self.channels)

    def _names(self) -> list[str]:
        return list(LAYOUTS[self.layout].class_names) if self.classes is None else named(self.classes)

    def open(self, task: TaskConfig) -> SampleSet:
        """List the images and their masks, and read some of them."""
        root, layout = Path(self.path).expanduser(), LAYOUTS[self.layout]
        test = next((pair for pair in layout.tests if (root / pair[0]).is_dir()), None)
        if test is None:
            wanted = " or ".join(images for images, _ in layout.tests)
            raise InputError(f"data.path: {self.path!r} has no folder {wanted} (layout {self.layout})")
        train = self._pairs(root, layout.train, layout) if (root / layout.train[0]).is_dir() else None
        return SampleSet(train, self._pairs(root, test, layout), self._names())

    def _pairs(self, root: Path, folders: tuple[str, str], layout: Layout) -> Samples:
        """Return the images of a folder, each with the mask of the same name in the other."""
        images, masks = (self._listed(root / folder) for folder in folders)
        ends = (layout.image_end, layout.mask_end)
        found, wanted = (_by_stem(root / folder, names, end)
                         for folder, names, end in zip(folders, (images, masks), ends, strict=True))  # fmt: skip
        where = f"data.path: {str(root / folders[0])!r}"
        if not found:
            raise InputError(f"{where} holds no images; allowed endings: {layout.image_end or ', '.join(ENDINGS)}")
        lonely = [name for stem, name in sorted(found.items()) if stem not in wanted]
        if lonely:
            place = str(root / folders[1])
            raise InputError(
                f"{where}: {len(lonely)} of {len(found)} images have no mask in {place!r}, such as {lonely[0]!r}"
            )
        pairs = [(root / folders[0] / name, root / folders[1] / wanted[stem]) for stem, name in sorted(found.items())]
        return mask_samples(pairs, MaskReader(len(self._names()), self.ids or layout.ids), "data.path")

    def _listed(self, folder: Path) -> list[str]:
        """Return the files in a folder and those below, as paths from it on."""
        try:
            files = [path for path in folder.rglob("*") if path.is_file()]
        except OSError as error:
            raise InputError(f"data.path: {str(folder)!r} cannot be listed ({error.strerror or error})") from error
        inside = [path.relative_to(folder) for path in files]
        return [path.as_posix() for path in inside if not any(part.startswith(".") for part in path.parts)]


def _by_stem(folder: Path, names: list[str], end: str) -> dict[str, str]:
    """Return the files whose names end so, by what comes before; InputError for two that only their endings tell."""
    found: dict[str, str] = {}
    for name in sorted(name for name in names if _fits(name, end)):
        other = found.setdefault(_stem(name, end), name)
        if other != name:
            raise InputError(f"data.path: {str(folder)!r} holds {other!r} and {name!r}; allowed: one file of a name")
    return found


def _fits(name: str, end: str) -> bool:
    return name.endswith(end) if end else name.lower().endswith(ENDINGS)


def _stem(name: str, end: str) -> str:
    return name.removesuffix(end) if end else name.rsplit(".", 1)[0]
