"""How long a training will take, from a few of its updates."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, islice
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress.core.modes import modes_kept
from compress.core.tensors import computed, restore
from compress.training.config import FitConfig, TrainerConfig
from compress.training.isolation import isolated
from compress.training.step import StepContext, TrainingStep
from compress.training.trainer import training_split
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import placed

WARM, TIMED = 2, 3
"""Updates before those that are timed, and those."""
SHORT = 10.0
"""Seconds of a training that the second update alone is enough for: a better estimate would take a part of them."""

if TYPE_CHECKING:
    from evaluators.datasets import Data, Loader
    from evaluators.tasks import Task


def estimate_seconds(
    model: nn.Module,
    data: Data,
    config: FitConfig,
    device: str | torch.device = "cpu",
    *,
    masks: Mapping[str, Tensor] | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
) -> float:
    """Return how many seconds `fit` will take: three updates and one test batch timed, after two to warm up.

    No more updates than the training has; of one that has two, or takes less than `SHORT`, the second is timed.
    Weights, buffers, modes and the process' random state are afterwards as they were.
    """
    apart = copy.deepcopy(teacher) if teacher is model else teacher  # the one learns in another mode than the other
    step = config.make_step(StepContext(config, data, apart), seed=seed)
    return seconds_by(step, model, data, config, device, masks, seed)


def seconds_by(
    step: TrainingStep,
    model: nn.Module,
    data: Data,
    config: TrainerConfig,
    device: str | torch.device = "cpu",
    masks: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> float:
    """Return how many seconds a training of `model` by `step` will take; see `estimate_seconds`."""
    with isolated(device, config.deterministic), _unchanged(model):
        loader = training_split(data)
        updater = Updater(model, step, config, device=device, seed=seed, batches=len(loader), masks=masks)
        updater.train()
        loader = placed(loader, device)
        batches = cycle(islice(loader.epoch(0), 5))
        step.begin_epoch(model, 0)
        count = max(1, min(WARM + TIMED, len(loader) * config.epochs))
        numbers = islice(cycle(range(min(count, len(loader)))), count)  # each batch as the update that it comes in
        seconds: list[float] = []
        for number in numbers:
            seconds.append(_timed_update(updater, batches, number))
            if len(seconds) == 2 and seconds[1] * len(loader) * config.epochs < SHORT:
                break
        update = median(seconds[min(WARM, len(seconds) - 1) :])
        total = update * len(loader) * config.epochs
        if data.test is not None and config.evaluate_every:
            evaluations = math.ceil(config.epochs / config.evaluate_every)
            total += _timed_forward(updater, data.task, data.test) * len(data.test) * evaluations
    return total if config.minutes is None else min(total, 60 * config.minutes)


def _timed_update(updater: Updater, batches: Iterator[Batch], number: int) -> float:
    start = time.perf_counter()
    updater.update(next(batches), number).item()  # .item() waits for a GPU
    return time.perf_counter() - start


@torch.no_grad()
def _timed_forward(updater: Updater, task: Task, test: Loader) -> float:
    model = updater.result.eval()
    start = time.perf_counter()
    batch = next(iter(test.batches())).to(updater.engine.device)
    computed(task.forward(model, batch))
    return time.perf_counter() - start


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put weights, buffers, gradients, modes and device back after the block."""
    home = next(model.parameters()).device
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with modes_kept(model):
            yield
    finally:
        model.to(home).to(memory_format=torch.contiguous_format)
        restore(model, before)
        model.zero_grad(set_to_none=True)
