"""Images in the layout of Pascal VOC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from pydantic import Field

from compress.core.errors import InputError
from evaluators.datasets.boxes import BoxReader, ImageWithObjects, Objects, Wrong, corners, within
from evaluators.datasets.dataset import DataFacts, datasets
from evaluators.datasets.mask_files import MaskReader, mask_samples
from evaluators.datasets.sample_sets import BACKGROUND, SampleImages, SampleSet
from evaluators.datasets.samples import Samples

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@datasets.register("voc")
class VocConfig(SampleImages):
    """A directory in the layout of Pascal VOC: JPEGImages/, Annotations/, SegmentationClass/ and ImageSets/.

    For detection, boxes are those of Annotations/NAME.xml; objects that are marked as difficult are not trained on, and
    in evaluation finding them or not does not count. For segmentation, masks are SegmentationClass/NAME.png, whose 255
    does not count. Which images make up a split stands in ImageSets/Main/SPLIT.txt or ImageSets/Segmentation/SPLIT.txt.
    """

    name: Literal["voc"]
    path: str = Field(min_length=1, description="the directory, such as VOCdevkit/VOC2012")
    train_split: str | None = Field("train", description="split to train on; null: none")
    test_split: str = Field("val", description="split to evaluate on")
    class_names: list[str] = Field(list(CLASSES), min_length=1, description="the classes, without the background")
    wrong_boxes: Wrong = Field(
        "refuse", description="drop: empty boxes are left out, and others cut at the image's edges"
    )

    def kinds(self) -> tuple[str, ...]:
        """Return boxes, masks."""
        return ("boxes", "masks")

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield the folder."""
        yield "path", self.path

    def describe(self) -> DataFacts:
        """Return the number of classes with the background; image size and channels are the recipe's."""
        return DataFacts(len(self.class_names) + 1, self.image_size, self.channels)

    def open(self, task: TaskConfig) -> SampleSet:
        """Read the lists of images, and their annotations."""
        masks = task.targets == "masks"
        splits = [
            None if split is None else (self._masks if masks else self._boxes)(split, key)
            for key, split in (("train_split", self.train_split), ("test_split", self.test_split))
        ]
        return SampleSet(splits[0], splits[1], [BACKGROUND, *self.class_names])

    def _listed(self, split: str, key: str, kind: str) -> list[str]:
        """Return the names that a split's list holds."""
        path = Path(self.path).expanduser() / "ImageSets" / kind / f"{split}.txt"
        try:
            names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"data.{key}: {str(path)!r} cannot be read ({reason}); a list of images is needed"
            ) from error
        if not names:
            raise InputError(f"data.{key}: {str(path)!r} lists no images")
        return names

    def _image(self, name: str) -> Path:
        return Path(self.path).expanduser() / "JPEGImages" / f"{name}.jpg"

    def _masks(self, split: str, key: str) -> Samples:
        root = Path(self.path).expanduser()
        pairs = [
            (self._image(name), root / "SegmentationClass" / f"{name}.png")
            for name in self._listed(split, key, "Segmentation")
        ]
        return mask_samples(pairs, MaskReader(len(self.class_names) + 1), f"data.{key}")

    def _boxes(self, split: str, key: str) -> Samples:
        numbers = {name: number for number, name in enumerate(self.class_names, 1)}
        images = [self._annotated(name, key, numbers) for name in self._listed(split, key, "Main")]
        if not any(image.objects.boxes for image in images):
            raise InputError(f"data.{key}: no image of {split!r} holds an object; at least one is needed")
        reader = BoxReader(images)
        return Samples(reader, range(len(images)), name=reader.name)

    def _annotated(self, name: str, key: str, numbers: dict[str, int]) -> ImageWithObjects:
        path = Path(self.path).expanduser() / "Annotations" / f"{name}.xml"
        where = f"data.{key}: {str(path)!r}"
        if not self._image(name).is_file():
            raise InputError(f"data.{key}: there is no file {str(self._image(name))!r}, which the split lists")
        try:
            tree = ElementTree.fromstring(path.read_bytes())
        except (OSError, ElementTree.ParseError, ValueError) as error:
            raise InputError(f"{where} is absent, damaged, or no xml ({error})") from error
        size = _whole(where, tree, "size/height"), _whole(where, tree, "size/width")
        objects: list[tuple[tuple[float, float, float, float], int, bool]] = []
        for entry in tree.iter("object"):
            label = (entry.findtext("name") or "").strip()
            if label not in numbers:
                raise InputError(f"{where} has an object {label!r}; allowed: {', '.join(numbers)} (data.class_names)")
            found = [_number(entry.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            left, top, right, bottom = corners(where, found, "xyxy")
            box = within(where, (left - 1, top - 1, right, bottom), size, self.wrong_boxes)  # VOC counts pixels from 1
            if box is not None:
                objects.append((box, numbers[label], (entry.findtext("difficult") or "0").strip() == "1"))
        boxes, labels, difficult = zip(*objects, strict=True) if objects else ((), (), ())
        return ImageWithObjects(str(self._image(name)), size, Objects(boxes, labels, difficult))


def _whole(where: str, tree: ElementTree.Element, place: str) -> int:
    value = _number(tree.findtext(place))
    if not isinstance(value, float) or value < 1 or value != int(value):
        raise InputError(f"{where} has the {place} {tree.findtext(place)!r}; a whole number of pixels is needed")
    return int(value)


def _number(text: str | None) -> float | str | None:
    try:
        return float(text or "")
    except ValueError:
        return text
