"""What is handed over in Python to score units on: batches of the user's own loaders, tried before a criterion does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError, in_one_line
from compress.core.kept_state import state_kept
from compress.core.problems import under, validated
from compress.criteria.unit_criterion import Batches, UnitCriterion
from evaluators.datasets.batch import Batch, tensors_in
from evaluators.tasks import DEFAULT, Task, TaskConfig, tasks

Source = Callable[[], Iterable[Any]] | Iterable[Any]
"""Batches (inputs, targets): a DataLoader or list, or a function that gives them anew each time."""
_FORM = "(inputs, targets), several inputs as a tuple or dictionary"


def task_of(task: str | Mapping[str, Any] | TaskConfig | Task | None) -> Task:
    """Return the task that a name, or a recipe's section `task`, says; None: classification.

    Raises:
        InputError: there is no such task, or an option of it is wrong.
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, TaskConfig):
        return task.bind(0, ())
    if task is None:
        return DEFAULT.bind(0, ())
    section = {"name": task} if isinstance(task, str) else dict(task)
    config = tasks.get(str(section.get("name", DEFAULT.name)))
    return validated(config, {"name": DEFAULT.name, **section}, under("task.")).bind(0, ())


def batches_of(source: Source, model: nn.Module, task: Task, criterion: UnitCriterion, limit: int | None) -> Batches:
    """Return a function that yields the batches of `source`, the first `limit` of them (None: all), each checked.

    The first is tried on the model, and on the loss where the criterion goes by it, before anything is scored.

    Raises:
        InputError: they can be gone through only once, there are none, or they do not fit model and task.
    """
    make: Callable[[], Iterable[Any]]
    if isinstance(source, Iterator):
        raise InputError(
            f"batches: a {type(source).__name__} is used up after one pass; allowed a DataLoader, a list, or a "
            "function that gives batches anew each time"
        )
    if callable(source):
        make = source
    elif isinstance(source, Iterable) and not isinstance(source, Mapping | str | Tensor):
        make = lambda: source  # noqa: E731
    else:
        raise InputError(f"batches: got a {type(source).__name__}; allowed a DataLoader, a list or a function of these")
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))

    def checked() -> Iterator[Batch]:
        width: int | None = None
        count = 0
        for count, item in enumerate(islice(make(), limit), 1):
            batch = _batch(item, task)
            if count == 1:
                width = _tried(batch, model, device, task, criterion)
            if width is not None:
                _refuse_other_classes(batch.targets, width)
            yield batch
        if not count:
            raise InputError("batches: there are none; a function has to give them anew each time it is called")

    return checked


def _batch(item: Any, task: Task) -> Batch:
    """Return what a loader gave as a batch."""
    if isinstance(item, Batch):
        return item
    if not isinstance(item, tuple | list) or len(item) != 2:
        if isinstance(item, Mapping):
            got = f"a dictionary with {', '.join(map(str, item))}"
        else:
            got = f"{len(item)} values" if isinstance(item, tuple | list) else f"a {type(item).__name__} alone"
        raise InputError(f"batches: each is {_FORM}; got {got}")
    batch = Batch(*item)
    sizes = {len(tensor) for tensor in tensors_in(batch.inputs) if tensor.ndim}
    if not sizes:
        raise InputError(f"batches: inputs are tensors; got {type(batch.inputs).__name__} without any")
    if task.name == DEFAULT.name:
        batch = replace(batch, targets=_classes(batch.targets, len(batch)))
    return batch


def _classes(targets: Any, samples: int) -> Tensor:
    """Return classes (N,) as int64, or probabilities of classes (N, C) as they are."""
    other = "other kinds of targets need their task, such as task='regression'"
    allowed = f"allowed integers (N,), or a probability of every class (N, C); {other}"
    if not isinstance(targets, Tensor):
        raise InputError(f"batches: targets are a {type(targets).__name__}; {allowed}")
    if len(targets.shape) == 0 or len(targets) != samples:
        raise InputError(f"batches: {samples} inputs have targets of shape {tuple(targets.shape)}; {allowed}")
    if targets.is_floating_point() or targets.is_complex():
        soft = targets.ndim == 2 and not targets.is_complex() and targets.shape[1] > 1
        if not soft or not bool(((targets.sum(1) - 1).abs() < 1e-2).all() & (targets >= 0).all()):
            kind = str(targets.dtype).removeprefix("torch.")
            raise InputError(f"batches: targets of {kind} {tuple(targets.shape)} are no probabilities; {allowed}")
        return targets
    if targets.ndim != 1:
        raise InputError(f"batches: targets have the shape {tuple(targets.shape)}; {allowed}")
    return targets.long()


def _tried(batch: Batch, model: nn.Module, device: torch.device, task: Task, criterion: UnitCriterion) -> int | None:
    """Run two samples of the first batch through model and loss; return how many classes the model tells apart.

    None where the criterion does not go by the loss, or the task is another.
    """
    try:
        few = batch.part(0, 2).to(device, copy=True)
        with state_kept(model), task.losing(model), torch.no_grad():
            outputs = task.forward(model, few)
            if not criterion.needs_loss:
                return None
            width = int(task.tensor(outputs).shape[1]) if task.name == DEFAULT.name else None
            if width is not None:
                _refuse_other_classes(few.targets, width)
            loss = task.loss(outputs, few)
    except CompressError:
        raise
    except Exception as error:  # whatever the user's module or a loss raises
        got = ", ".join(f"{str(each.dtype)[6:]} {tuple(each.shape)}" for each in tensors_in(batch.inputs))
        raise InputError(
            f"batches: the model or the loss of task {task.name} fails on them ({in_one_line(error)}); inputs: {got}"
        ) from error
    if not bool(torch.isfinite(loss).all()):
        raise InputError(f"batches: the loss of task {task.name} is {loss.mean():g} on the first; allowed finite ones")
    return width


def _refuse_other_classes(targets: Tensor, width: int) -> None:
    """Raise InputError where a model of `width` classes cannot learn from such targets."""
    if targets.is_floating_point():
        if targets.shape[1] != width:
            raise InputError(f"batches: targets are for {targets.shape[1]} classes, and the model has {width}")
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= width:
        raise InputError(f"batches: there is the class {low if low < 0 else high}; allowed 0 to {width - 1}")
