"""Writes what a teacher gives for every batch of a training (`teacher_cache.py` reads it)."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from compress.core.atomic import check_writable, write_json
from compress.core.errors import CompressError, InputError, NotWritten, reason_of
from compress.core.progress import track
from compress.distill.teacher_cache import (
    MANIFEST,
    PARTS,
    STEPS,
    Manifest,
    compare,
    epoch_folder,
    fitting,
    marks,
    read_manifest,
    shapes_of,
)
from compress.distill.teachers import TeacherConfig, opened
from compress.training.engine import Engine
from compress.training.isolation import isolated
from compress.training.step import StepContext, Teacher
from compress.training.trainer import training_split
from compress.training.update import seed_update
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import placed

_DONE = "done.json"


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
    wanted = fitting(config, context, seed)
    if (folder / MANIFEST).is_file():
        found = read_manifest(folder, key)
        compare(found, wanted | {"outputs": found.outputs}, folder, key, "take another folder, or delete this one")
    elif folder.exists() and not folder.is_dir():
        raise InputError(f"{key}: {str(folder)!r} is a file; name a folder")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{key}: {str(folder)!r} holds other files; name a folder of its own")
    check_writable(folder, f"{key}:")
    missing = [epoch for epoch in range(settings.epochs) if not epoch_folder(folder, epoch).is_dir()]
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


class _Writer:
    """Takes the rows of one epoch; what is not finished lies in a folder of another name."""

    def __init__(self, folder: Path, epoch: int, known: dict[str, Any]) -> None:
        self.folder, self.final, self.known = folder, epoch_folder(folder, epoch), known
        self.part = self.final.with_suffix(".part")
        self.arrays: list[Any] = []
        self.done = self._there()
        self._saved = time.monotonic()

    def _there(self) -> int:
        try:
            done = json.loads((self.part / _DONE).read_text(encoding="utf-8"))
            self.arrays = [open_memmap(self.part / f"{part}.npy", mode="r+") for part in PARTS]
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
        places = (places * STEPS).round().view(whole.shape).to(torch.int32)
        try:
            if not self.arrays:
                self._make(whole)
            for array, rows in zip(self.arrays, (places, torch.cat([least, largest], 1), index, mark), strict=True):
                array[self.done, : len(rows)] = rows.cpu().numpy()  # of images mixed in pairs an odd one is left out
            self.done += 1
            if time.monotonic() - self._saved > 10:
                self._save()
        except OSError as error:
            raise NotWritten(f"cannot write {self.part}: {reason_of(error)}") from error

    def _make(self, outputs: Tensor) -> None:
        manifest = Manifest(**(self.known | {"outputs": list(outputs.shape[1:])}))
        self.part.mkdir(parents=True)
        if not (self.folder / MANIFEST).is_file():
            write_json(self.folder / MANIFEST, manifest.model_dump(mode="json", by_alias=True))
        for part, shape in shapes_of(manifest).items():
            self.arrays.append(open_memmap(self.part / f"{part}.npy", mode="w+", dtype=PARTS[part], shape=shape))

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


def _index(batch: Batch, key: str) -> Tensor:
    if batch.index is None:
        raise InputError(f"{key}: the data set does not say which samples a batch holds, so nothing can be kept of it")
    return batch.index
