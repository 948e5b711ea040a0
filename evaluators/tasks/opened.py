"""Data as a task takes them: what a third party's data set gives is tried out when it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.core.errors import InputError
from compress.core.registry import is_ours
from evaluators.datasets import Batch, Data, DataFacts, Dataset
from evaluators.datasets.batch import tensors_in
from evaluators.datasets.joint import IGNORED
from evaluators.tasks.task import Task, TaskConfig


def facts_of(config: Dataset) -> DataFacts:
    """Return what a data set tells before any model exists; InputError where that is something else."""
    facts: Any = config.describe()  # a third party's may be anything
    if not isinstance(facts, DataFacts):
        raise InputError(f"data: {config.name}.describe gave {facts!r:.80}; allowed: a DataFacts")
    found: DataFacts = facts
    numbers = (facts.num_outputs, facts.image_size, facts.channels)
    if not all(each is None or isinstance(each, int) for each in numbers):
        raise InputError(f"data: {config.name}.describe gave {facts!r:.120}; allowed: whole numbers, or None")
    return found


def opened(
    config: Dataset,
    task: TaskConfig,
    preprocessing_hint: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Data | None:
    """Return what `Dataset.load` gives.

    Raises InputError for data that are absent or wrong: the first batch of each split of a third party's set is held
    against what the set describes and what the task learns from.
    """
    data = config.load(task, preprocessing_hint, image_size=image_size, seed=seed)
    if not is_ours(config) and (wrong := _wrong(config, task, data)):
        raise InputError(f"data: {config.name}: {wrong}")
    return data


def _wrong(config: Dataset, task: TaskConfig, data: Any) -> str | None:
    """Return what is wrong with data that a data set has opened."""
    if data is None and config.absent:
        return None
    if not isinstance(data, Data):
        return f"load gave {data!r:.80}; allowed: a Data" + ("" if data is not None else ", where `absent` is False")
    bound: Any = data.task
    if not isinstance(bound, Task):
        return f"the task of what load gave is {bound!r:.80}; allowed: what task.bind gives"
    names: Any = data.class_names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"class_names are {names!r:.80}; allowed: a list of texts"
    told, found = facts_of(config).num_outputs, data.task.num_outputs
    if told is not None and task.bind(told, data.task.input_size).num_outputs != found:
        return f"describe says {told} {data.task.counted}, and load opens {found}"
    for split, loader in (("train", data.train), ("test", data.test)):
        if loader is not None and (wrong := _wrong_split(data, loader, split)):
            return f"{split}: {wrong}"
    return None


def _wrong_split(data: Data, loader: Any, split: str) -> str | None:
    needed = ("epoch" if split == "train" else "batches", "batch_size", "num_samples", "__len__")
    lacks = [name for name in needed if not hasattr(loader, name)]
    if lacks:
        return f"{type(loader).__name__} has no {lacks[0]}; allowed: what has all of evaluators.datasets.Loader"
    batches = loader.epoch(0) if split == "train" else loader.batches()
    try:
        batch = next(iter(batches), None)
    except TypeError:
        return f"{needed[0]} gave {batches!r:.80}; allowed: what yields batches"
    if batch is None:
        return f"{needed[0]} yields no batches; a split that is absent is None"
    if not isinstance(batch, Batch):
        return f"a batch is {type(batch).__name__}; allowed: evaluators.datasets.Batch(inputs, targets, index)"
    return _wrong_inputs(batch, data, split) or wrong_targets(batch, data.task.config.targets, data.task.num_outputs)


def _wrong_inputs(batch: Batch, data: Data, split: str) -> str | None:
    images: Any = batch.inputs
    size = tuple(data.preprocessing.input_size)
    if not isinstance(images, Tensor | tuple | list | dict):
        return f"inputs are {type(images).__name__}; allowed: a tensor, or several in a tuple or dictionary"
    if isinstance(images, list) and data.task.config.targets != "boxes":
        return "inputs are a list; allowed: one tensor of all samples of the batch, of one size"
    if not len(batch):
        return "a batch has no samples"
    if isinstance(images, Tensor):
        same = len(size) if split == "test" else 1  # training may change the size of images
        fits = images.ndim == 1 + len(size) and tuple(images.shape[1 : 1 + same]) == size[:same]
        if images.dtype != torch.float32 or not fits:
            needed = ", ".join(map(str, ("N", *size)))
            return f"inputs are {images.dtype} {tuple(images.shape)}; needed, by `preprocessing`: float32 ({needed})"
    if not all(bool(torch.isfinite(each).all()) for each in tensors_in(images)):
        return "inputs hold NaN or infinity"
    return None


def wrong_targets(batch: Batch, kind: str | None, number: int) -> str | None:
    """Return, as a sentence, what is wrong with the targets of a batch; None where nothing is.

    Args:
        batch: of any split.
        kind: of targets that the task learns from, see `TaskConfig.targets`; of others nothing is known.
        number: how many things the targets tell apart.
    """
    return _FORMS[kind](batch, number) if kind in _FORMS else None


def _classes(batch: Batch, classes: int) -> str | None:
    """Return what is wrong with class numbers."""
    if not isinstance(batch.targets, Tensor) or batch.targets.dtype != torch.int64:
        return f"targets are {_kind(batch.targets)}; needed: class numbers, int64"
    if batch.targets.shape != (len(batch),):
        return f"for {len(batch)} samples there are targets of {tuple(batch.targets.shape)}; (N,) is needed"
    return None if _below(batch.targets, number=classes) else f"a target is none of the {classes} classes"


def _masks(batch: Batch, classes: int) -> str | None:
    """Return what is wrong with masks."""
    if not isinstance(batch.targets, Tensor) or batch.targets.dtype != torch.int64:
        return f"targets are {_kind(batch.targets)}; needed: masks, int64"
    sides = batch.inputs.shape[2:] if isinstance(batch.inputs, Tensor) else batch.targets.shape[1:]
    if batch.targets.shape != (len(batch), *sides):
        return f"masks are of {tuple(batch.targets.shape)}, images of {tuple(sides)} pixels"
    counted = batch.targets[batch.targets != IGNORED]
    return None if _below(counted, number=classes) else f"a pixel is of none of the {classes} classes"


def _boxes(batch: Batch, classes: int) -> str | None:
    """Return what is wrong with boxes and their labels."""
    if not isinstance(batch.inputs, list) or not isinstance(batch.targets, list):
        return "images and targets are lists, as detectors take them"
    for image, target in zip(batch.inputs, batch.targets, strict=True):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dtype != torch.float32 or boxes.shape != (len(labels), 4) or labels.dtype != torch.int64:
            return "boxes are float32 (M, 4), labels int64 (M,)"
        sides = torch.tensor([*image.shape[:0:-1]] * 2)
        if not bool((boxes >= 0).all() and (boxes <= sides).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
            return "a box is empty or reaches out of its image"
        if not _below(labels, number=classes) or bool((labels < 1).any()):
            return f"labels are 1 to {classes - 1}, without the background"
    return None


def _values(batch: Batch, outputs: int) -> str | None:
    """Return what is wrong with values."""
    fits = isinstance(batch.targets, Tensor) and batch.targets.dtype == torch.float32
    return None if fits and len(batch.targets) == len(batch) else "targets are float32, one for each sample"


_FORMS: dict[str | None, Callable[[Batch, int], str | None]] = {
    "classes": _classes,
    "masks": _masks,
    "boxes": _boxes,
    "values": _values,
}


def _kind(targets: Any) -> str:
    return str(targets.dtype) if isinstance(targets, Tensor) else type(targets).__name__


def _below(numbers: Tensor, number: int) -> bool:
    return not numbers.numel() or bool((numbers >= 0).all() and (numbers < number).all())
