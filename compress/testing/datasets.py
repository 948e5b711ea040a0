"""What training and evaluation rely on in a data set."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from evaluators.datasets import Batch, Dataset, Loader
from evaluators.tasks import DEFAULT, TaskConfig
from evaluators.tasks.opened import wrong_targets


def check_dataset(config: Dataset, task: TaskConfig = DEFAULT) -> None:
    """Open the data set and read two epochs of it.

    Raises:
        AssertionError: what it describes and what it opens are apart, its targets are not what the task learns from, an
            epoch is not the same for the same seed, does not go on from its middle, or a sample is met twice.
    """
    assert config.misfit(task) is None, f"data set: {config.misfit(task)}"
    facts, data = config.describe(), config.load(task, seed=0)
    assert (data is None) == config.absent, f"data set {config.name} is absent, and opens; or it opens nothing"
    if data is None:
        return
    told, opened = facts.num_outputs, data.task.num_outputs
    assert told is None or task.bind(told, data.task.input_size).num_outputs == opened, (
        f"data set {config.name} describes {told} {data.task.counted} and opens {opened}"
    )
    assert facts.channels in (None, data.in_chans), f"data set {config.name} opens {data.in_chans} channels"
    for split in (data.train, data.test):
        if split is not None:
            wrong = wrong_targets(next(iter(split.batches())), task.targets, opened)
            assert not wrong, f"data set {config.name}: {wrong}"
    if data.test is not None:
        _check_test(config.name, data.test)
    if data.train is not None:
        again = config.load(task, seed=0)
        assert again is not None and again.train is not None
        _check_train(config.name, data.train, again.train)


def _check_test(name: str, loader: Loader) -> None:
    batches = list(loader.batches())
    samples = sum(map(len, batches))
    assert len(batches) == len(loader), f"data set {name} says {len(loader)} test batches and gives {len(batches)}"
    assert samples == loader.num_samples, f"data set {name} says {loader.num_samples} test samples and gives {samples}"
    if all(batch.index is not None for batch in batches):
        order = torch.cat([batch.index for batch in batches if batch.index is not None])
        assert torch.equal(order, torch.arange(samples)), f"data set {name} gives test samples out of their order"


def _check_train(name: str, loader: Loader, again: Loader) -> None:
    epoch = list(loader.epoch(0))
    assert len(epoch) == len(loader), f"data set {name} says {len(loader)} batches an epoch and gives {len(epoch)}"
    assert _same(epoch, again.epoch(0)), f"data set {name} gives other batches for the same seed"
    start = len(epoch) // 2
    assert _same(epoch[start:], loader.epoch(0, start)), f"data set {name}: an epoch does not go on from its middle"
    if len(epoch) > 1:
        assert not _same(epoch, islice(loader.epoch(1), len(epoch))), f"data set {name}: all epochs are the same"
    known = [batch.index for batch in epoch if batch.index is not None]
    if known:
        index = torch.cat(known)
        assert len(index.unique()) == len(index), f"data set {name} gives a training sample twice in an epoch"


def _same(one: Iterable[Batch], other: Iterable[Batch]) -> bool:
    return all(_equal(a.inputs, b.inputs) and _equal(a.targets, b.targets) for a, b in zip(one, other, strict=True))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
