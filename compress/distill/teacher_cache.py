"""What a teacher gives for every batch of a training, kept on disk, so that a large one runs once for many trainings.

A folder holds one folder for each epoch, with arrays that are mapped into memory where they are read: `outputs`
(batches, samples, ...) in 16 bits, between the least and the largest of each sample (`range`), which keeps logits of
+-20 to 3e-4, where float16 would be off by 8e-3; `index` (batches, samples), which sample of the training split each
row belongs to, and `marks` (batches, samples), a number for the images as they were fed: shifted, mirrored, mixed. A
training reads only rows whose index and mark are those of its own batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from compress.bundle_files import WEIGHTS, find
from compress.core.config import Config
from compress.core.errors import InputError, reason_of
from compress.core.problems import validated
from compress.distill.teachers import TeacherConfig
from compress.training.replicas import replicas
from compress.training.step import StepContext
from compress.training.trainer import training_split
from evaluators.datasets.batch import Batch, tensors_in
from spaces.zoo import ModelConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "teacher.json"
PARTS = {"outputs": np.uint16, "range": np.float32, "index": np.int64, "marks": np.float32}
STEPS = 65535
_CLOSE = 2e-3  # marks are about 1; devices round otherwise


class Manifest(Config):
    """The content of teacher.json: what has to be the same where the outputs are used."""

    schema_version: Literal[1] = Field(1, alias="schema")
    model: dict[str, Any]
    weights: str | None
    normalised: list[list[float] | None]
    task: str
    seed: int
    batch_size: int
    batches: int
    samples: int
    outputs: list[int]
    precision: str


class CachedTeacher:
    """The kept outputs of a teacher, for the training that they were made for."""

    def __init__(self, name: str, config: TeacherConfig, context: StepContext) -> None:
        """Open the folder.

        Raises:
            InputError: it is missing, cut short, or of another teacher or training.
        """
        assert config.cache is not None
        self.folder, self.key = Path(config.cache), f"teachers.{name}.cache"
        advice = "make it with `compress cache-teacher --recipe` and this recipe"
        if not (self.folder / MANIFEST).is_file():
            raise InputError(f"{self.key}: {str(self.folder)!r} holds no outputs of a teacher; {advice}")
        if replicas().count > 1 and (context.config.mixup or context.config.cutmix):
            raise InputError(
                f"{self.key}: holds outputs for batches that are mixed as a whole, and each of several devices mixes "
                "its share; train on one device, without mixup and cutmix, or without the cache"
            )
        self.manifest = read_manifest(self.folder, self.key)
        wanted = fitting(config, context, self.manifest.seed) | {"outputs": self.manifest.outputs}
        compare(self.manifest, wanted, self.folder, self.key, advice)
        there = [epoch_folder(self.folder, epoch).is_dir() for epoch in range(context.config.epochs)]
        if not all(there):
            raise InputError(
                f"{self.key}: {str(self.folder)!r} holds {sum(there)} of the {len(there)} epochs of this training; "
                "`compress cache-teacher --recipe` with this recipe makes the others"
            )
        self._epoch: tuple[int, list[NDArray[Any]]] | None = None

    def outputs(self, batch: Batch, index: Tensor | None, update: int) -> Tensor:
        """Return what the teacher gave for `batch` (mixed as it is learnt from) of `update`, on its device.

        Raises:
            InputError: the rows there are of other images, or the files are damaged.
        """
        epoch, number = divmod(update, self.manifest.batches)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._opened(epoch)
        share = replicas().slice(min(self.manifest.batch_size, self.manifest.samples))
        kept, ends, rows, mark = (part[number][share] for part in self._epoch[1])
        kept, ends, mark = (part[: len(batch)] for part in (kept, ends, mark))  # mixed in pairs, it may be one fewer
        here = marks(batch)
        same = index is not None and np.array_equal(rows, index.cpu().numpy())
        if not same or not np.allclose(mark, here.cpu().numpy(), rtol=_CLOSE, atol=_CLOSE):
            raise InputError(
                f"{self.key}: {str(self.folder)!r} is of other images than update {update} learns from: data, "
                "augmentation, seed and mixing have to be those that it was made with; make another one with "
                "`compress cache-teacher --recipe` and this recipe"
            )
        least, largest = ends[:, :1], ends[:, 1:]
        whole = least + (largest - least) * (kept.reshape(len(kept), -1) / np.float32(STEPS))
        return torch.from_numpy(whole.reshape(kept.shape)).to(here.device)

    def _opened(self, epoch: int) -> list[NDArray[Any]]:
        folder, found = epoch_folder(self.folder, epoch), []
        for part, expected in shapes_of(self.manifest).items():
            file = folder / f"{part}.npy"
            try:
                found.append(np.load(file, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError) as error:
                raise InputError(f"{self.key}: {str(file)!r} is damaged or cut short ({reason_of(error)})") from error
            if found[-1].shape != expected:
                raise InputError(f"{self.key}: {str(file)!r} holds {found[-1].shape}, not {expected}")
        return found


def marks(batch: Batch) -> Tensor:
    """Return one number for the inputs of each sample, float32 (N,): other images, or the same mirrored, give others.

    It is the projection of each tensor on a fixed direction of length 1.
    """
    found = torch.zeros(len(batch))
    for tensor in tensors_in(batch.inputs):
        rows = tensor.detach().flatten(1).float()
        places = torch.arange(rows.shape[1], device=rows.device)
        direction = torch.cos((places * places % 1013).float())
        found = found.to(rows.device) + rows @ (direction / direction.norm())
    return found


def fitting(config: TeacherConfig, context: StepContext, seed: int) -> dict[str, Any]:
    """Return what has to be the same, as far as it is known before the teacher has been run."""
    loader = training_split(context.data)
    assert config.model is not None
    return {
        "model": config.model.model_dump(mode="json"),
        "weights": _hash(config.model),
        "normalised": [None if each is None else list(each) for each in (config.mean, config.std)],
        "task": context.data.task.name,
        "seed": seed,
        "batch_size": loader.batch_size,
        "batches": len(loader),
        "samples": loader.num_samples,
        "outputs": [],
        "precision": context.config.precision,
    }


def _hash(model: ModelConfig) -> str | None:
    """Return the hash of the file that the weights come from; None without one."""
    if model.source == "bundle":
        file = find(Path(model.name), "model.name") / WEIGHTS
    elif model.checkpoint is not None:
        file = Path(model.checkpoint).expanduser()
    else:
        return None
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"model: {str(file)!r} cannot be read ({reason_of(error)})") from error


def shapes_of(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of an epoch."""
    rows = manifest.batches, min(manifest.batch_size, manifest.samples)
    return {part: rows for part in PARTS} | {"outputs": (*rows, *manifest.outputs), "range": (*rows, 2)}


def epoch_folder(folder: Path, epoch: int) -> Path:
    """Return where the rows of an epoch lie once all are there."""
    return folder / f"epoch-{epoch:04d}"


def read_manifest(folder: Path, key: str) -> Manifest:
    """Return what the folder says of itself; InputError, naming the recipe's `key`, where it is damaged."""
    file = folder / MANIFEST
    try:
        return validated(Manifest, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, InputError) as error:
        advice = "delete the folder, or name another one"
        raise InputError(f"{key}: {str(file)!r} is damaged ({reason_of(error)}); {advice}") from error


def compare(found: Manifest, wanted: dict[str, Any], folder: Path, key: str, advice: str) -> None:
    """Raise InputError, with `advice`, where the folder is of another training or teacher than `wanted`."""
    for name, value in wanted.items():
        there = getattr(found, name)
        if there != value:
            if isinstance(there, dict) and isinstance(value, dict):
                key_at_fault = next(each for each in value if there.get(each) != value[each])
                name, there, value = f"a model of {key_at_fault}", there.get(key_at_fault), value[key_at_fault]
            what = f"{name} {there}, this training {value}"
            raise InputError(f"{key}: {str(folder)!r} is of another training or teacher: it has {what}; {advice}")


def each_cached(teachers: dict[str, TeacherConfig]) -> Iterator[tuple[str, TeacherConfig]]:
    """Yield the teachers whose outputs are kept."""
    return ((name, each) for name, each in teachers.items() if each.cache is not None)
