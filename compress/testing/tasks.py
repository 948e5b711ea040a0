"""What training, evaluation and reports rely on in a task."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evaluators.datasets.batch import Batch
from evaluators.tasks import Task


def check_task(task: Task, batch: Batch, outputs: Callable[[Batch], Any]) -> None:
    """Judge what a model gives for a batch of at least four samples.

    Args:
        task: bound to the sizes of `batch`.
        batch: inputs and targets, as the task's data sets give them.
        outputs: what a model gives for a batch, or a part of one, with gradients; one sample by itself. Where only
            models in training have a loss, what they give in training while gradients are enabled.

    Raises:
        AssertionError: metrics are not told apart or not given, the loss is no finite scalar with a gradient, or the
            figures hang on how samples are put into batches.
    """
    names = [metric.name for metric in task.metrics]
    assert names and len(set(names)) == len(names), f"task {task.name} has no metrics, or one twice: {names}"
    known = {metric.name for metric in task.config.metrics}
    assert set(names) <= known and "loss" in known, f"task {task.name}: one of its metrics has to be called loss"
    found = outputs(batch)
    loss = task.loss(found, batch)
    assert loss.shape == () and bool(torch.isfinite(loss)), f"task {task.name}: its loss is no finite scalar"
    assert loss.requires_grad, f"task {task.name}: its loss carries no gradient"
    if task.gives_tensor:
        assert isinstance(task.tensor(found), Tensor), f"task {task.name}: `tensor` gives no tensor"
    with torch.no_grad():
        one = outputs(batch.part(0, 1))
    assert task.config.outputs_of(one) in (0, task.num_outputs), (
        f"task {task.name}: outputs_of gives {task.config.outputs_of(one)} for a model of {task.num_outputs} outputs"
    )
    with torch.no_grad():
        whole, parts = task.meter(), task.meter()
        whole.update(outputs(batch), batch)
        for part in (batch.part(0, 1), batch.part(1, len(batch))):
            parts.update(outputs(part), part)
    figures, again = whole.compute(), parts.compute()
    missing = [name for name in names if figures.get(name) is None]
    assert not missing, f"task {task.name} names the metric {', '.join(missing)}, and does not give it"
    for name in names:
        one_way, other = float(figures[name] or 0), float(again[name] or 0)
        assert math.isclose(one_way, other, rel_tol=1e-4, abs_tol=1e-5), (
            f"task {task.name}: {name} is {one_way} of one batch and {other} of the same samples in two"
        )
