"""How good a model, or anything that can be called like one, is at its task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress.core.batch_norm import enough_values
from compress.core.errors import CompressError
from compress.core.modes import evaluating
from compress.core.progress import track
from evaluators.datasets.loaders import placed
from evaluators.tasks.task import Task

if TYPE_CHECKING:
    from evaluators.datasets import Loader


def evaluate(
    model: Callable[..., Any], loader: Loader, task: Task, device: str | torch.device = "cpu"
) -> dict[str, float | None]:
    """Return the metrics of `task`, by name; None for those that say nothing at its sizes.

    `model` is a module (evaluated in eval mode on `device`, then put back in its mode) or any callable from a batch's
    inputs to outputs. It gets inputs of its own, which it may change. Raises what `Meter.update` does.
    """
    loader = placed(loader, device)
    meter, total = task.meter(), 0
    modes = evaluating(model) if isinstance(model, nn.Module) else nullcontext()
    with torch.no_grad(), modes, enough_values("data.eval_batch_size"):
        for batch in track(loader.batches(), "evaluating", total=-(-loader.num_samples // loader.batch_size)):
            meter.update(task.forward(model, batch.to(device, copy=True)), batch)
            total += len(batch)
    if total == 0:
        raise CompressError("there are no images to evaluate on")
    return meter.compute()
