"""Fine-tuning after compensation: it starts gently, and what it ends with is kept only where that is better.

Compensation leaves a network that is already near the dense one; a short training at a full learning rate can end below
that. So the learning rate rises over a quarter of the epochs (where the recipe does not say how it rises), and start
and end are compared on training images that are set apart for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from compress.bundle import Bundle
from compress.core.environment import on_device
from compress.core.progress import say
from compress.core.tensors import restore
from compress.distill.teacher_cache import each_cached
from compress.runs.context import Context
from compress.runs.stages.train import train
from compress.training.config import FitConfig
from evaluators.datasets import Data, Loader
from evaluators.datasets.holdout import set_apart
from evaluators.tasks import Task
from evaluators.tasks.evaluation import evaluate

WARMUP = 0.25
"""Share of the epochs over which the learning rate rises, where the recipe leaves `warmup_epochs` open."""
SHARE, FEWEST, MOST = 0.1, 100, 1000
"""Training images set apart to judge by: share of all, and limits; fewer than the least tell nothing."""


def compensated_before(earlier: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether one of the acts before compensated the model for what it removed."""
    return any((record.get("compensation") or {}).get("kept") for record in earlier)


def train_gently(bundle: Bundle, config: FitConfig, context: Context, label: str, teacher: nn.Module | None) -> None:
    """Train the bundle's model in place, and put it back as it was where that was better; it is told in the details."""
    assert context.data is not None  # the recipe's checks refuse training without data
    if config.warmup_epochs is None:
        config = config.model_copy(update={"warmup_epochs": WARMUP * config.epochs})
    apart = None if _from_cache(config) else _images_apart(context.data, context.recipe.seed)
    if apart is None:
        context.details["notes"] = [
            "start and end are not compared: it takes 1,000 training images that can be divided, no cached teachers"
        ]
        train(bundle, config, context, label, teacher)
        return
    data, judged = apart
    start = {name: value.detach().cpu().clone() for name, value in bundle.model.state_dict().items()}
    before = _worth(bundle.model, judged, data.task, context.device)
    train(bundle, config, context, label, teacher, data)
    after = _worth(bundle.model, judged, data.task, context.device)
    main = data.task.main_metric
    worse = main.better(before[main.name], after[main.name])
    if worse:
        restore(bundle.model, start)
    figures = f"{main.show(before[main.name])} before, {main.show(after[main.name])} after"
    note = f"{main.label} on {judged.num_samples:,} training images set apart: {figures} {label}"
    note += "; the model is left as it was before" if worse else ""
    say(note)
    context.details |= {
        "kept": "start" if worse else "end",
        "set_apart": {"images": judged.num_samples, "start": before[main.name], "end": after[main.name]},
        "notes": [*context.details.get("notes", []), note],
    }


def _from_cache(config: FitConfig) -> bool:
    """Return whether teachers' outputs were kept for the very batches that all training images make."""
    return any(True for _ in each_cached(getattr(config.step_config, "teachers", {})))


def _images_apart(data: Data, seed: int) -> tuple[Data, Loader] | None:
    if data.train is None or SHARE * data.train.num_samples < FEWEST:
        return None
    return set_apart(data, min(MOST, round(SHARE * data.train.num_samples)), seed)


def _worth(model: nn.Module, judged: Loader, task: Task, device: str) -> dict[str, float]:
    with on_device(model, device):
        found = evaluate(model, judged, task, device)
    main = task.main_metric
    return {main.name: main.of(found)}
