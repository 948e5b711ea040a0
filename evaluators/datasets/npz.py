"""NumPy archives."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from compress.core.errors import InputError
from evaluators.datasets.arrays import Arrays, ArraySet
from evaluators.datasets.dataset import DataFacts, datasets
from evaluators.datasets.image_files import limited
from evaluators.datasets.loaders import Data
from evaluators.datasets.named_arrays import NamedArrays, array_names, as_read, read_arrays, read_named, samples
from evaluators.datasets.preprocessing import Preprocessing
from evaluators.datasets.samples import SampleLoader

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig

KEYS = ("x_train", "y_train", "x_test", "y_test")


@datasets.register("npz")
class NpzConfig(Arrays):
    """A NumPy archive with x_train, y_train, x_test, y_test; images uint8, (N, H, W, C) or (N, H, W).

    With `inputs`, models take arrays of any number, type and shape, as they are: `inputs: [image, step], targets: y`
    reads image_train, step_train, y_train and the same for test. Floats become float32, bytes float32 from 0 to 1,
    other integers int64. Targets are integers (N,) for classes, integers (N, H, W) for masks (255 does not count), or
    floats of any shape for values.
    """

    name: Literal["npz"]
    path: str = Field(min_length=1, description="the .npz file")
    inputs: list[str] | dict[str, str] | None = Field(
        None,
        min_length=1,
        description="names of the arrays that the model takes, in the order of its arguments, or as argument: array; "
        "null: images x",
    )
    targets: str | None = Field(None, min_length=1, description="name of the targets' arrays; null: y")
    num_classes: int | None = Field(None, ge=2, description="classes; null: counted from the labels")

    @model_validator(mode="after")
    def _as_they_are(self) -> NpzConfig:
        if self.inputs is None and self.targets is not None:
            raise ValueError("targets: only used with inputs; images x have labels y")
        fields = type(self).model_fields
        for key in ("image_size", "channels", "mean", "std", "interpolation", "augment") if self.inputs else ():
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"{key}: not used with inputs, whose arrays are taken as they are; leave it out")
        return self

    def kinds(self) -> tuple[str, ...]:
        """Return classes for images; what named arrays hold is seen when they are read."""
        return ("classes",) if self.inputs is None else ("classes", "masks", "values")

    def describe(self) -> DataFacts:
        """Return the set's facts; of named arrays how many outputs there are."""
        if self.inputs is None:
            return super().describe()
        return DataFacts(self._named().outputs, None, None, images=False)

    def load(
        self,
        task: TaskConfig,
        preprocessing_hint: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> Data:
        """Return loaders of images in memory, or of the named arrays."""
        if self.inputs is None:
            return super().load(task, preprocessing_hint, image_size, seed)
        found = self._named()
        if task.targets not in (None, found.kind):
            floats = "; numbers are floats there: y.astype(np.float32)" if task.targets == "values" else ""
            raise InputError(
                f"data.targets: {self.path!r} holds {found.kind} as {self.targets or 'y'}, and task {task.name} learns "
                f"from {task.targets}{floats}"
            )
        inputs = self.inputs
        train, test = (
            SampleLoader(
                limited(samples(split, inputs, found.kind), limit),
                evaluation=as_read,
                training=training,
                batch_size=batch_size,
                workers=0,
                seed=seed,
            )
            for split, limit, training, batch_size in (
                (found.train, self.limit_train, as_read, self.batch_size),
                (found.test, self.limit_test, None, self.eval_batch_size),
            )
        )
        first = found.main_shape[0]
        preprocessing = Preprocessing(found.main_shape, (0.0,) * first, (1.0,) * first)
        return Data(task.bind(found.outputs, found.main_shape), preprocessing, train, test, found.class_names)

    def _named(self) -> NamedArrays:
        assert self.inputs is not None
        path, names = self._file(), tuple(array_names(self.inputs))
        return read_named(str(path), path.stat().st_mtime_ns, names, self.targets or "y", self.num_classes)

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield the file."""
        yield "path", self.path

    def open(self) -> ArraySet:
        """Read the archive and check it."""
        path = self._file()
        return _npz(str(path), path.stat().st_mtime_ns, self.num_classes)

    def _file(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise InputError(f"data.path: there is no file {self.path!r}; an .npz with {', '.join(KEYS)} is needed")
        return path


@functools.lru_cache(maxsize=1)
def _npz(path: str, modified: int, num_classes: int | None) -> ArraySet:
    """Read an archive; `modified` makes a changed file a new one for the cache."""
    arrays = read_arrays(path, f"data.path: {path!r}", KEYS)
    for key in ("y_train", "y_test"):
        if arrays[key].ndim == 2 and arrays[key].shape[1] == 1:  # as Keras has them
            arrays[key] = arrays[key][:, 0]
    for split in ("train", "test"):
        _check_images(f"data.path: {path!r}: x_{split}", arrays[f"x_{split}"])
        _check_labels(f"data.path: {path!r}: y_{split}", arrays[f"y_{split}"], len(arrays[f"x_{split}"]))
    train, test = (arrays[f"x_{s}"].reshape(*arrays[f"x_{s}"].shape[:3], -1) for s in ("train", "test"))
    if train.shape[1:] != test.shape[1:]:
        raise InputError(f"data.path: {path!r}: x_train holds images of {train.shape[1:]}, x_test of {test.shape[1:]}")
    classes = _count_classes(f"data.path: {path!r}", arrays["y_train"], arrays["y_test"], num_classes)
    return ArraySet(
        torch.from_numpy(train),
        torch.from_numpy(arrays["y_train"].astype(np.int64)),
        torch.from_numpy(test),
        torch.from_numpy(arrays["y_test"].astype(np.int64)),
        [str(n) for n in range(classes)],
    )


def _check_images(where: str, images: np.ndarray[Any, Any]) -> None:
    allowed = "uint8 of shape (N, H, W, 3), (N, H, W, 1) or (N, H, W)"
    if images.dtype != np.uint8:
        raise InputError(f"{where} is {images.dtype}; allowed: {allowed}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape:
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        hint = "; the channels come last: np.moveaxis(x, 1, -1)" if first else ""
        raise InputError(f"{where} has the shape {images.shape}; allowed: {allowed}{hint}")


def _check_labels(where: str, labels: np.ndarray[Any, Any], images: int) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{where} is {labels.dtype} of shape {labels.shape}; allowed: integers of shape (N,)")
    if len(labels) != images:
        raise InputError(f"{where} holds {len(labels)} labels for {images} images; one for each is needed")
    if labels.min() < 0:
        raise InputError(f"{where} holds the label {labels.min()}; allowed: 0 and up")


def _count_classes(where: str, train: np.ndarray[Any, Any], test: np.ndarray[Any, Any], num_classes: int | None) -> int:
    """Return the number of classes; without the recipe's word every class must occur in both splits."""
    highest = int(max(train.max(), test.max()))
    if num_classes is not None:
        if highest >= num_classes:
            raise InputError(f"{where} holds the label {highest}; allowed: 0 to {num_classes - 1} (data.num_classes)")
        return num_classes
    for key, own, other_key, other in (("y_train", train, "y_test", test), ("y_test", test, "y_train", train)):
        lonely = np.setdiff1d(own, other)
        if lonely.size:
            raise InputError(
                f"{where}: {key} holds the label {lonely[-1]}, {other_key} does not; "
                "give data.num_classes if that is meant"
            )
    present = np.unique(train)
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if gaps.size:
        raise InputError(
            f"{where}: labels go up to {highest} but no image is of class {gaps[0]}; "
            "give data.num_classes if that is meant"
        )
    if highest < 1:
        raise InputError(f"{where}: all labels are {highest}; at least two classes are needed")
    return highest + 1
