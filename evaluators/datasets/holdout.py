"""Images to judge candidates on, taken from the training images; and the same data at another image size."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F

from compress.core.errors import InputError
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import ArrayLoader, Data, Loader
from evaluators.datasets.named_arrays import as_read
from evaluators.datasets.samples import SampleLoader, Sized


def with_holdout(data: Data, fraction: float, seed: int) -> Data:
    """Return `data` with a part of its training images in place of its test images, which stay untouched.

    The part is the same for the same seed, holds each class in its share (to within one image), and is not augmented;
    the rest is what is left to train on.

    Args:
        data: with training images.
        fraction: of the training images that is held out, above 0 and below 1.
        seed: decides which.

    Raises:
        InputError: no training images, or too few to hold any out.
    """
    if data.train is None:
        raise InputError("data: a search needs training images (it judges candidates on a part of them)")
    eval_batch_size = data.train.batch_size if data.test is None else data.test.batch_size
    held, rest = _split(labels_of(data.train), fraction, seed)
    if not len(held) or not len(rest):
        raise InputError(f"data: of {data.train.num_samples} training images, {fraction:g} cannot be held out")
    return replace(data, train=_part(data.train, rest), test=_part(data.train, held, eval_batch_size))


def set_apart(data: Data, count: int, seed: int) -> tuple[Data, Loader] | None:
    """Return `data` with so many training images fewer to train on, and those, not augmented; test images stay.

    They are the same for the same seed, and hold each class in its share where labels are class numbers.

    Returns:
        None where there are no training images, or a loader of another package that cannot be divided.
    """
    train = data.train
    if not isinstance(train, ArrayLoader | SampleLoader):
        return None
    labels = labels_of(train)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        labels = np.zeros(len(labels), dtype=np.int64)
    held, rest = _split(labels, count / max(1, len(labels)), seed)
    if not len(held) or not len(rest):
        return None
    return replace(data, train=_part(train, rest)), _part(train, held, train.batch_size)


def unaugmented(loader: Loader) -> Loader:
    """Return a loader of the same training images in the same order, without augmentation.

    A loader of another package, which cannot be told so, is returned itself.
    """
    if isinstance(loader, ResizedLoader):
        return ResizedLoader(unaugmented(loader.loader), loader.size, loader.interpolation)
    part: Any = copy.copy(loader)
    if isinstance(loader, ArrayLoader):
        part.augment = None if loader.augment is None else "none"
    elif isinstance(loader, SampleLoader):
        part.training = None if loader.training is None else loader.evaluation
    else:
        return loader
    result: Loader = part
    return result


def resized(data: Data, size: int) -> Data:
    """Return `data` with images of `size` x `size` pixels: from the stored ones where they are in memory."""
    if size == data.image_size:
        return data
    preprocessing = replace(data.preprocessing, input_size=(data.in_chans, size, size))
    train, test = (
        None if loader is None else _resized(loader, size, preprocessing.interpolation)
        for loader in (data.train, data.test)
    )
    task = data.task.resized(preprocessing.input_size)
    return replace(data, task=task, preprocessing=preprocessing, train=train, test=test)


def labels_of(loader: Loader) -> np.ndarray[Any, Any]:
    """Return the class of every sample, in their order; 0 where samples have none."""
    if isinstance(loader, ArrayLoader):
        return np.asarray(loader.labels)
    assert isinstance(loader, SampleLoader)
    labels, indices = loader.samples.labels, loader.samples.indices
    if labels is None:
        return np.zeros(len(indices), dtype=np.int64)
    return np.asarray([labels[index] for index in indices])


def _split(labels: np.ndarray[Any, Any], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the places of the images held out, as they were drawn, and of the others, ascending.

    In the order of the draw every batch has something of all classes, also where the data are sorted by them: norms
    that go by the batch would not work otherwise.

    Classes of a single image, or more classes than images on one side, allow no shares; the draw then ignores classes.
    """
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

    held = round(fraction * len(labels))
    rest = len(labels) - held
    if not held or not rest:
        return [], []
    _, counts = np.unique(labels, return_counts=True)
    shares = counts.min() > 1 and len(counts) <= min(held, rest)
    splitter = (StratifiedShuffleSplit if shares else ShuffleSplit)(1, test_size=held, random_state=seed % 2**32)
    left, taken = next(splitter.split(labels, labels))
    return taken.tolist(), np.sort(left).tolist()


def _part(loader: Loader, places: list[int], eval_batch_size: int | None = None) -> Loader:
    """Return the images at `places`: to train on as before, or (given a batch size) to evaluate on."""
    part: Any = copy.copy(loader)
    if isinstance(loader, ArrayLoader):
        part.images, part.labels = loader.images[places], loader.labels[places]
        part.augment = loader.augment if eval_batch_size is None else None
    else:
        assert isinstance(loader, SampleLoader)
        part.samples = replace(loader.samples, indices=np.asarray(loader.samples.indices)[places].tolist())
        part.training = loader.training if eval_batch_size is None else None
    part.batch_size = eval_batch_size or loader.batch_size
    part.num_samples = len(places)
    result: Loader = part
    return result


def _resized(loader: Loader, size: int, interpolation: str) -> Loader:
    if isinstance(loader, SampleLoader) and isinstance(loader.evaluation, Sized):
        again = copy.copy(loader)
        again.evaluation = loader.evaluation.resized(size)
        if isinstance(loader.training, Sized):
            again.training = loader.training.resized(size)
        return again
    if isinstance(loader, SampleLoader) and loader.evaluation is as_read:
        raise InputError(f"data.inputs: arrays are taken as they are, and not at {size} pixels a side")
    if not isinstance(loader, ArrayLoader):
        return ResizedLoader(loader, size, interpolation)
    part = copy.copy(loader)
    part.preprocessing = replace(loader.preprocessing, input_size=(loader.preprocessing.input_size[0], size, size))
    return part


class ResizedLoader:
    """A loader whose batches come out at another size."""

    def __init__(self, loader: Loader, size: int, interpolation: str) -> None:
        self.loader, self.size, self.interpolation = loader, size, interpolation
        self.batch_size, self.num_samples = loader.batch_size, loader.num_samples

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of a training epoch."""
        return map(self._resize, self.loader.epoch(epoch, start))

    def batches(self) -> Iterator[Batch]:
        """Yield every sample once."""
        return map(self._resize, self.loader.batches())

    def _resize(self, batch: Batch) -> Batch:
        size = (self.size, self.size)
        return batch.mapped(lambda images: F.interpolate(images, size, mode=self.interpolation, antialias=True))
