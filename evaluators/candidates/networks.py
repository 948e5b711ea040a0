"""What evaluators that build networks share: the network of an architecture, its name, its data, its accuracy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.core.atomic import replacing
from compress.core.environment import on_device
from compress.core.errors import Diverged, InputError
from compress.core.progress import say
from evaluators.candidates.evaluator import EvaluatorContext, Metrics
from evaluators.datasets import Data
from evaluators.datasets.holdout import resized, with_holdout
from evaluators.datasets.loaders import seed_of
from evaluators.tasks import TaskConfig
from evaluators.tasks.evaluation import evaluate
from spaces.architecture import Architecture
from spaces.space import Space


def fingerprint(space: Space, arch: Architecture, **settings: Any) -> str:
    """Return 16 hexadecimal digits that stand for a network of `space` and what it is judged under."""
    return _digest({**space.to_dict(space.canonical(arch)), **settings})[:16]


def build(space: Space, arch: Architecture, data: Data | None, seed: int) -> nn.Module:
    """Build `arch` for `data` (None: for the space's own task) on the CPU.

    The initial weights depend on the seed and the architecture alone; the process' random state stays as it was.
    """
    number = int(_digest(dict(space.canonical(arch)))[:8], 16)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, number))
        return space.build(arch, None if data is None else data.task)


def candidate_data(context: EvaluatorContext, holdout: float, kind: str) -> Data:
    """Return the search's data with held-out training images to judge on; InputError where there is no data."""
    if context.data is None:
        raise InputError(f"search.evaluator: kind {kind} needs images; name a data set in data")
    return with_holdout(context.data, holdout, context.seed)


def data_for(space: Space, arch: Architecture, data: Data) -> Data:
    """Return `data` at the image size that `arch` works on."""
    return resized(data, space.input_size(arch, data.image_size))


def accuracy(model: nn.Module, data: Data, device: str) -> Metrics:
    """Return the task's metrics on the held-out samples."""
    assert data.test is not None
    with on_device(model, device):
        return told(evaluate(model, data.test, data.task, device))


def told(metrics: Mapping[str, float | None]) -> Metrics:
    """Return the metrics that say something."""
    return {name: value for name, value in metrics.items() if value is not None}


def diverged(data: Data, error: Diverged) -> Metrics:
    """Return what a candidate is worth whose outputs are not finite, and say so."""
    main = data.task.main_metric
    say(f"{error}; the search goes on, this candidate counts as {main.name} {main.worst:g}")
    return {metric.name: metric.worst for metric in data.task.metrics}


def costs(space: Space, arch: Architecture, data: Data) -> Metrics:
    """Return the params and macs of `arch` for `data`."""
    found = space.cost(arch, data.task)
    return {name: float(value) for name, value in found.items()}


def save_weights(model: nn.Module, path: Path, arch: Architecture) -> None:
    """Write the weights of `model`, which is the network of `arch`, to a file that is whole or absent."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"architecture": arch.to_json()})


def accuracy_names(data: Data) -> tuple[str, ...]:
    """Return what `accuracy` gives for `data`, and `costs`."""
    return names_for(data.task.config)


def names_for(task: TaskConfig) -> tuple[str, ...]:
    """Return what `accuracy` gives of networks for `task`, and `costs`."""
    return (*(metric.name for metric in task.metrics), "params", "macs")


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
