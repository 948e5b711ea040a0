"""Sets that fit in memory: scikit-learn's digits, NumPy archives, torchvision's small sets."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets.config import DigitsConfig, NpzConfig, TorchvisionConfig
from evaluators.datasets.decoding import reason
from evaluators.datasets.preprocessing import Statistics

KEYS = ("x_train", "y_train", "x_test", "y_test")
_DIGITS_TEST = 360
_SAMPLE = 10_000  # images that the mean and the standard deviation are measured on


@dataclass(frozen=True)
class ArraySet:
    """Images uint8 (N, H, W, C) and labels int64 (N,), checked."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are below it."""
        return len(self.class_names)

    @property
    def image_size(self) -> int | None:
        """Pixels a side, None when the images are not square."""
        height, width = self.train_images.shape[1:3]
        return int(height) if height == width else None

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel over training images, pixels in 0..1."""
        step = -(-len(self.train_images) // _SAMPLE)
        pixels = self.train_images[::step].flatten(0, 2).double() / 255
        return tuple(pixels.mean(0).tolist()), tuple(pixels.std(0).clamp_min(1e-3).tolist())


def open_set(config: DigitsConfig | NpzConfig | TorchvisionConfig) -> ArraySet:
    """Read the set that `config` names; the last one stays in memory, so asking twice costs once."""
    if isinstance(config, DigitsConfig):
        return _digits()
    if isinstance(config, TorchvisionConfig):
        return _torchvision(config.dataset, config.path, config.download)
    path = Path(config.path).expanduser()
    if not path.is_file():
        raise InputError(f"data.path: there is no file {config.path!r}; an .npz with {', '.join(KEYS)} is needed")
    return _npz(str(path), path.stat().st_mtime_ns, config.num_classes)


def sides(
    config: DigitsConfig | NpzConfig | TorchvisionConfig, found: ArraySet, model: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Return height and width of the model's input: the recipe's, the model's, or the images' own."""
    if config.image_size is None and model is not None:
        return model
    side = config.image_size or found.image_size
    if side is None:
        shape = tuple(found.train_images.shape[1:3])
        raise InputError(
            f"data.image_size: the images are {shape}, not square; give the size to resize them to, or "
            "model.input_size with another height than width"
        )
    return (side, side)


def limited(images: Tensor, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    """Return the first `limit` samples, as many of each class as can be."""
    if limit is None or limit >= len(labels):
        return images, labels
    kept = balanced(labels.numpy(), limit)
    return images[kept], labels[kept]


def balanced(labels: np.ndarray[Any, Any], limit: int) -> Tensor:
    """Return the indices, ascending, of `limit` samples taken from the classes in turn."""
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return torch.from_numpy(np.sort(np.lexsort((labels, turn))[:limit]))


@functools.cache
def _digits() -> ArraySet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(3)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    # the split is part of the data set: the same for every seed
    train, test = train_test_split(np.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=0)
    return ArraySet(images[train], labels[train], images[test], labels[test], [str(n) for n in range(10)])


@functools.lru_cache(maxsize=1)
def _npz(path: str, modified: int, num_classes: int | None) -> ArraySet:
    """Read an archive; `modified` makes a changed file a new one for the cache."""
    arrays = _read_npz(path)
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


def _read_npz(path: str) -> dict[str, np.ndarray[Any, Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"data.path: {path!r} is a single array; an .npz with {', '.join(KEYS)} is needed")
        with archive:
            absent = [key for key in KEYS if key not in archive.files]
            if absent:
                raise InputError(f"data.path: {path!r} has no {absent[0]!r}; needed: {', '.join(KEYS)}")
            return {key: archive[key] for key in KEYS}
    except InputError:
        raise
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise nearly anything
        raise InputError(f"data.path: {path!r} cannot be read as an .npz of plain arrays ({reason(error)})") from error


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


@functools.lru_cache(maxsize=1)
def _torchvision(dataset: str, path: str, download: bool) -> ArraySet:
    from torchvision import datasets

    try:
        train, test = (getattr(datasets, dataset)(path, train=t, download=download) for t in (True, False))
    except Exception as error:  # of damaged files torchvision's readers raise nearly anything
        advice = "the download failed" if download else "set data.download to fetch it"
        raise InputError(f"data.path: {dataset} is not complete in {path!r} ({reason(error)}); {advice}") from error
    (x_train, y_train), (x_test, y_test) = (
        (torch.as_tensor(split.data), torch.as_tensor(split.targets)) for split in (train, test)
    )
    if x_train.ndim == 3:
        x_train, x_test = x_train.unsqueeze(3), x_test.unsqueeze(3)
    return ArraySet(x_train, y_train, x_test, y_test, [str(name) for name in train.classes])
