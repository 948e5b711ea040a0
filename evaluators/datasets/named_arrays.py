"""Arrays of a NumPy archive as they are: what models with inputs of any number, type and shape are trained on."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets.decoding import reason
from evaluators.datasets.joint import IGNORED
from evaluators.datasets.samples import Samples

Array = np.ndarray[Any, Any]
Names = list[str] | dict[str, str]
"""Arrays of a model's inputs: in the order of its arguments, or by the names of these."""


@dataclass(frozen=True)
class NamedArrays:
    """Both splits of an archive, checked.

    Attributes:
        train: inputs by array name, and targets.
        test: the same.
        kind: of the targets: classes, masks or values.
        outputs: how many classes there are, or numbers a sample, or channels.
    """

    train: tuple[dict[str, Tensor], Tensor]
    test: tuple[dict[str, Tensor], Tensor]
    kind: str
    outputs: int

    @property
    def class_names(self) -> list[str]:
        """Numbers as names; none where targets are values."""
        return [] if self.kind == "values" else [str(number) for number in range(self.outputs)]

    @property
    def main_shape(self) -> tuple[int, ...]:
        """Sizes of the input that costs are counted for: of the first image, else of the first with any size."""
        shapes = [tuple(each.shape[1:]) for each in self.train[0].values()]
        images = (shape for shape in shapes if len(shape) == 3)
        return next(images, next((shape for shape in shapes if shape), (1,)))


def array_names(inputs: Names) -> list[str]:
    """Return the names of the arrays."""
    return list(inputs.values()) if isinstance(inputs, dict) else inputs


def samples(split: tuple[dict[str, Tensor], Tensor], inputs: Names, kind: str) -> Samples:
    """Return a split's samples, whose inputs are a tensor, a tuple or (where arguments have names) a dictionary."""
    arrays, targets = split
    labels = targets.tolist() if kind == "classes" else None
    return Samples(_Rows(arrays, targets, inputs), range(len(targets)), labels)


def as_read(inputs: Any, target: Any) -> tuple[Any, Any]:
    """Return a sample as it is: what arrays hold has no geometry that is known here."""
    return inputs, target


@dataclass(frozen=True)
class _Rows:
    arrays: Mapping[str, Tensor]
    targets: Tensor
    inputs: Names

    def __call__(self, index: int) -> tuple[Any, Tensor]:
        rows = {name: self.arrays[name][index] for name in array_names(self.inputs)}
        if isinstance(self.inputs, dict):
            return {argument: rows[name] for argument, name in self.inputs.items()}, self.targets[index]
        several = tuple(rows.values())
        return several if len(several) > 1 else several[0], self.targets[index]


@functools.lru_cache(maxsize=1)
def read_named(path: str, modified: int, inputs: tuple[str, ...], targets: str, num_classes: int | None) -> NamedArrays:
    """Read an archive; `modified` makes a changed file a new one for the cache.

    Raises:
        InputError: arrays are absent, or do not fit each other.
    """
    where = f"data.path: {path!r}"
    arrays = read_arrays(path, where, [f"{name}_{split}" for name in (*inputs, targets) for split in ("train", "test")])
    for name, array in arrays.items():
        _check(f"{where}: {name}", array)
    for name in (*inputs, targets):
        train, test = (arrays[f"{name}_{split}"] for split in ("train", "test"))
        if train.shape[1:] != test.shape[1:] or train.dtype.kind != test.dtype.kind:
            told = " and ".join(f"{each.dtype} {list(each.shape[1:])}" for each in (train, test))
            raise InputError(f"{where}: {name}_train and {name}_test hold {told} a sample; both need the same")
    for split in ("train", "test"):
        counts = {name: len(arrays[f"{name}_{split}"]) for name in (*inputs, targets)}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{count} of {name}_{split}" for name, count in counts.items())
            raise InputError(f"{where}: there are {told}; each sample needs one of each")
    goals = [arrays[f"{targets}_{split}"] for split in ("train", "test")]
    kind = _kind(f"{where}: {targets}_train", goals[0])
    outputs = _outputs(f"{where}: {targets}", goals, kind, num_classes)
    first, second = (
        (
            {name: _input(arrays[f"{name}_{split}"]) for name in inputs},
            torch.from_numpy(target.astype(np.float32 if kind == "values" else np.int64)),
        )
        for split, target in zip(("train", "test"), goals, strict=True)
    )
    return NamedArrays(first, second, kind, outputs)


def read_arrays(path: str, where: str, keys: Sequence[str]) -> dict[str, Array]:
    """Return the arrays `keys` of an .npz, never unpickled; InputError, which begins with `where`, for a wrong one."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{where} is a single array; an .npz with {', '.join(keys)} is needed")
        with archive:
            absent = [key for key in keys if key not in archive.files]
            if absent:
                held = ", ".join(archive.files) or "nothing"
                raise InputError(f"{where} has no {absent[0]!r}; needed: {', '.join(keys)}; it holds {held}")
            return {key: archive[key] for key in keys}
    except InputError:
        raise
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise nearly anything
        raise InputError(f"{where} cannot be read as an .npz of plain arrays ({reason(error)})") from error


def _check(where: str, array: Array) -> None:
    if array.dtype.kind not in "fiub":
        raise InputError(f"{where} is {array.dtype}; allowed: numbers")
    if array.ndim < 1 or 0 in array.shape:
        raise InputError(f"{where} has the shape {array.shape}; at least one sample of one number is needed")
    if array.dtype.kind == "f":
        if not bool(np.isfinite(array).all()):
            raise InputError(f"{where} holds numbers that are infinite or not a number (NaN); allowed: finite ones")
        largest = max(float(array.max()), -float(array.min()))
        if largest > float(np.finfo(np.float32).max):
            raise InputError(f"{where} holds numbers up to {largest:.3g}, more than float32 has; divide them")
    elif array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{where} holds the number {array.max()}, which is more than int64 has")


def _kind(where: str, targets: Array) -> str:
    if targets.dtype.kind == "f":
        return "values"
    kinds = {1: "classes", 3: "masks"}
    if targets.ndim not in kinds:
        raise InputError(
            f"{where} is {targets.dtype} of shape {targets.shape}; allowed: integers (N,) for classes or (N, H, W) for "
            "masks, floats of any shape for values"
        )
    return kinds[targets.ndim]


def _outputs(where: str, targets: Sequence[Array], kind: str, num_classes: int | None) -> int:
    """Return the number of classes, that of a sample's values, or of their channels."""
    if kind == "values":
        if num_classes is not None:
            raise InputError(f"data.num_classes: got {num_classes}, and the targets are values; leave it out")
        return int(targets[0].shape[1]) if targets[0].ndim > 1 else 1
    counted = [each[each != IGNORED] if kind == "masks" else each for each in targets]
    low, high = min(int(each.min(initial=0)) for each in counted), max(int(each.max(initial=0)) for each in counted)
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = "0 and up" if num_classes is None else f"0 to {num_classes - 1} (data.num_classes)"
        raise InputError(f"{where} holds the class {low if low < 0 else high}; allowed: {allowed}")
    if num_classes is None and high < 1:
        raise InputError(f"{where}: all classes are 0; at least two are needed")
    if num_classes is None and kind == "classes":
        present = np.union1d(*targets)
        if len(present) <= high:
            absent = int(np.flatnonzero(present != np.arange(len(present)))[0])
            raise InputError(
                f"{where}: classes go up to {high} but no sample is of class {absent}; give data.num_classes if "
                "that is meant"
            )
    return num_classes or high + 1


def _input(array: Array) -> Tensor:
    """Return bytes as float32 in 0..1, other integers as int64, floats as float32, truth values as they are."""
    if array.dtype == np.uint8:
        return torch.from_numpy(array.astype(np.float32) / 255)
    if array.dtype.kind == "b":
        return torch.from_numpy(array)
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
