"""How good a model, or anything that can be called like one, is at its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress.core.batch_norm import enough_values
from compress.core.errors import CompressError, in_one_line
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
    return _figures(meter.compute(), task)


def try_meter(model: nn.Module, loader: Loader, task: Task) -> None:
    """Evaluate `model`, which is on the CPU, on two samples, so that a third party's meter fails before any training.

    Raises CompressError in a sentence where it gives something else than its metrics.
    """
    batch = next(iter(loader.batches())).part(0, 2)
    meter = task.meter()
    try:
        with torch.no_grad(), evaluating(model), enough_values("data.eval_batch_size"):
            meter.update(task.forward(model, batch.to("cpu", copy=True)), batch)
        found = meter.compute()
    except CompressError:
        raise
    except Exception as error:  # whatever a third party's code raises
        raise CompressError(f"task {task.name}: its meter fails on two samples: {in_one_line(error)}") from error
    _figures(found, task)


def _figures(found: Any, task: Task) -> dict[str, float | None]:
    """Return what a meter, which may be a third party's, gives, as floats; CompressError where one is left out."""
    gives = f"task {task.name}: its meter gives"
    if not isinstance(found, Mapping):
        raise CompressError(f"{gives} {found!r:.80}; allowed: a mapping of metrics to numbers")
    left_out = [metric.name for metric in task.metrics if metric.name not in found]
    if left_out:
        raise CompressError(f"{gives} no {left_out[0]}; what cannot be told is None")
    figures: dict[str, float | None] = {}
    for name, value in found.items():
        try:
            figures[name] = None if value is None else float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CompressError(
                f"task {task.name}: its meter gives {name} = {value!r:.80}; allowed: a number"
            ) from error
    return figures
