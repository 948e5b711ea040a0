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
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.lib.format import open_memmap
from pydantic import Field
from torch import Tensor

from compress.bundle_files import WEIGHTS, find
from compress.core.atomic import write_json
from compress.core.config import Config
from compress.core.errors import CompressError, InputError, NotWritten, reason_of
from compress.core.problems import validated
from compress.core.progress import track
from compress.distill.teachers import TeacherConfig, opened
from compress.training.engine import Engine
from compress.training.isolation import isolated
from compress.training.step import StepContext, Teacher
from compress.training.trainer import training_split
from compress.training.update import seed_update
from evaluators.datasets.batch import Batch, tensors_in
from evaluators.datasets.loaders import placed
from spaces.zoo import ModelConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MANIFEST, _DONE = "teacher.json", "done.json"
_PARTS = {"outputs": np.uint16, "range": np.float32, "index": np.int64, "marks": np.float32}
_STEPS = 65535
_CLOSE = 2e-3  # marks are about 1; devices round otherwise


class _Manifest(Config):
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


@dataclass(frozen=True)
class CacheResult:
    """What `cache_teacher` has left.

    Attributes:
        folder: where it lies.
        epochs: how many epochs of a training it is for.
        computed: how many of these were computed now.
        size: bytes on disk.
        seconds: that it took.
    """

    folder: Path
    epochs: int
    computed: int
    size: int
    seconds: float


def cache_teacher(
    name: str, config: TeacherConfig, context: StepContext, seed: int, device: str | torch.device = "cpu"
) -> CacheResult:
    """Run a teacher over every batch of a training, and keep what it gives; stopped at any moment, go on from there.

    Args:
        name: of the teacher, as the recipe calls it.
        config: the teacher, with a `model` and a `cache`.
        context: the training: its settings (epochs, mixing, precision) and its data.
        seed: of the recipe, by which batches are mixed.
        device: where the teacher runs.

    Raises:
        InputError: the folder is another teacher's or training's, or the teacher cannot be opened.
        NotWritten: the disk is full, or rights are missing.
        CompressError: an output is not finite.
    """
    assert config.model is not None and config.cache is not None
    folder, key, started = Path(config.cache), f"teachers.{name}.cache", time.monotonic()
    settings, loader = context.config, training_split(context.data)
    wanted = _fitting(config, context, seed)
    if (folder / _MANIFEST).is_file():
        found = _read(folder, key)
        _compare(found, wanted | {"outputs": found.outputs}, folder, key, "take another folder, or delete this one")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{key}: {str(folder)!r} holds other files; name a folder of its own")
    missing = [epoch for epoch in range(settings.epochs) if not _folder(folder, epoch).is_dir()]
    if missing:
        engine = Engine(device, settings.precision, settings.channels_last)
        teacher = Teacher(opened(name, config, context.data))
        teacher.prepare(engine)
        loader, task = placed(loader, device), context.data.task.learning(settings)
        with isolated(device, settings.deterministic):
            for epoch in missing:
                writer = _Writer(folder, epoch, wanted)
                batches = loader.epoch(epoch, start=writer.done)
                label = f"teacher {name} {epoch + 1}/{settings.epochs}"
                for batch in track(batches, label, total=len(loader) - writer.done):
                    seed_update(seed, epoch * len(loader) + writer.done, engine.device)
                    given = engine.moved(batch)
                    mixed = task.mixed(given)
                    mark = marks(mixed)
                    outputs = task.tensor(task.forward(teacher, mixed))
                    writer.add(outputs, _index(batch, key), mark, name)
                writer.close()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return CacheResult(folder, settings.epochs, len(missing), size, time.monotonic() - started)


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
        if not (self.folder / _MANIFEST).is_file():
            raise InputError(f"{self.key}: {str(self.folder)!r} holds no outputs of a teacher; {advice}")
        self.manifest = _read(self.folder, self.key)
        wanted = _fitting(config, context, self.manifest.seed) | {"outputs": self.manifest.outputs}
        _compare(self.manifest, wanted, self.folder, self.key, advice)
        there = [_folder(self.folder, epoch).is_dir() for epoch in range(context.config.epochs)]
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
        kept, ends, rows, mark = (part[number] for part in self._epoch[1])
        here = marks(batch)
        same = index is not None and np.array_equal(rows, index.cpu().numpy())
        if not same or not np.allclose(mark, here.cpu().numpy(), rtol=_CLOSE, atol=_CLOSE):
            raise InputError(
                f"{self.key}: {str(self.folder)!r} is of other images than update {update} learns from: data, "
                "augmentation, seed and mixing have to be those that it was made with; make another one with "
                "`compress cache-teacher --recipe` and this recipe"
            )
        least, largest = ends[:, :1], ends[:, 1:]
        whole = least + (largest - least) * (kept.reshape(len(kept), -1) / np.float32(_STEPS))
        return torch.from_numpy(whole.reshape(kept.shape)).to(here.device)

    def _opened(self, epoch: int) -> list[NDArray[Any]]:
        folder, found = _folder(self.folder, epoch), []
        for part, expected in _shapes(self.manifest).items():
            file = folder / f"{part}.npy"
            try:
                found.append(np.load(file, mmap_mode="r", allow_pickle=False))
            except (OSError, ValueError) as error:
                raise InputError(f"{self.key}: {str(file)!r} is damaged or cut short ({reason_of(error)})") from error
            if found[-1].shape != expected:
                raise InputError(f"{self.key}: {str(file)!r} holds {found[-1].shape}, not {expected}")
        return found


class _Writer:
    """Takes the rows of one epoch; what is not finished lies in a folder of another name."""

    def __init__(self, folder: Path, epoch: int, fitting: dict[str, Any]) -> None:
        self.folder, self.final, self.fitting = folder, _folder(folder, epoch), fitting
        self.part = self.final.with_suffix(".part")
        self.arrays: list[Any] = []
        self.done = self._there()
        self._saved = time.monotonic()

    def _there(self) -> int:
        try:
            done = json.loads((self.part / _DONE).read_text(encoding="utf-8"))
            self.arrays = [open_memmap(self.part / f"{part}.npy", mode="r+") for part in _PARTS]
            return int(done)
        except (OSError, ValueError):
            shutil.rmtree(self.part, ignore_errors=True)
            self.arrays = []
            return 0

    def add(self, outputs: Tensor, index: Tensor, mark: Tensor, name: str) -> None:
        """Keep the rows of one batch."""
        whole = outputs.detach().float().cpu()
        if not bool(torch.isfinite(whole).all()):
            raise CompressError(f"teacher {name} gives outputs that are not finite")
        flat = whole.flatten(1)
        least, largest = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        places = (flat - least) / (largest - least).clamp_min(torch.finfo(torch.float32).tiny)
        places = (places * _STEPS).round().view(whole.shape).to(torch.int32)
        try:
            if not self.arrays:
                self._make(whole)
            for array, rows in zip(self.arrays, (places, torch.cat([least, largest], 1), index, mark), strict=True):
                array[self.done] = rows.cpu().numpy()
            self.done += 1
            if time.monotonic() - self._saved > 10:
                self._save()
        except OSError as error:
            raise NotWritten(f"cannot write {self.part}: {reason_of(error)}") from error

    def _make(self, outputs: Tensor) -> None:
        manifest = _Manifest(**(self.fitting | {"outputs": list(outputs.shape[1:])}))
        self.part.mkdir(parents=True)
        if not (self.folder / _MANIFEST).is_file():
            write_json(self.folder / _MANIFEST, manifest.model_dump(mode="json", by_alias=True))
        for part, shape in _shapes(manifest).items():
            self.arrays.append(open_memmap(self.part / f"{part}.npy", mode="w+", dtype=_PARTS[part], shape=shape))

    def _save(self) -> None:
        for array in self.arrays:
            array.flush()
        write_json(self.part / _DONE, self.done)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Give the folder its name, now that all rows are there."""
        try:
            self._save()
            (self.part / _DONE).unlink()
            self.arrays = []
            self.part.rename(self.final)
        except OSError as error:
            raise NotWritten(f"cannot write {self.final}: {reason_of(error)}") from error


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


def _index(batch: Batch, key: str) -> Tensor:
    if batch.index is None:
        raise InputError(f"{key}: the data set does not say which samples a batch holds, so nothing can be kept of it")
    return batch.index


def _fitting(config: TeacherConfig, context: StepContext, seed: int) -> dict[str, Any]:
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


def _shapes(manifest: _Manifest) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of an epoch."""
    rows = manifest.batches, min(manifest.batch_size, manifest.samples)
    return {part: rows for part in _PARTS} | {"outputs": (*rows, *manifest.outputs), "range": (*rows, 2)}


def _folder(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}"


def _read(folder: Path, key: str) -> _Manifest:
    file = folder / _MANIFEST
    try:
        return validated(_Manifest, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"{key}: {str(file)!r} is damaged ({reason_of(error)})") from error


def _compare(found: _Manifest, wanted: dict[str, Any], folder: Path, key: str, advice: str) -> None:
    for name, value in wanted.items():
        there = getattr(found, name)
        if there != value:
            what = f"{name} {there}, this training {value}"
            raise InputError(f"{key}: {str(folder)!r} is of another training or teacher: it has {what}; {advice}")


def each_cached(teachers: dict[str, TeacherConfig]) -> Iterator[tuple[str, TeacherConfig]]:
    """Yield the teachers whose outputs are kept."""
    return ((name, each) for name, each in teachers.items() if each.cache is not None)
