"""How long a run will take, from a few training steps timed before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from compress.bundle import Bundle
from compress.core.environment import on_device
from compress.core.formatting import duration
from compress.distill.finetune import FinetuneConfig
from compress.export.exporters import ExportConfig
from compress.runs.recipe import Recipe
from compress.runs.stages import Stage
from compress.training.config import TrainConfig
from compress.training.estimate import estimate_seconds
from evaluators.datasets import Data
from evaluators.latency.measure import LatencyConfig
from evaluators.tasks.accuracy import logits_of

EXPORT_SECONDS_PER_LAYER = 0.06  # one exporter, its checks included: swin_tiny 7 s, resnet18 2 s on one core


def estimate(
    stages: Sequence[Stage], bundle: Bundle, data: Data | None, recipe: Recipe, device: str
) -> list[tuple[str, float]]:
    """Return (name, seconds) of the parts of `stages` that take time; the dense model is in `bundle`."""
    parts: list[tuple[str, float]] = []
    evaluation = _evaluation_seconds(bundle, data, device)
    for stage in stages:
        if isinstance(stage.config, TrainConfig):
            assert data is not None
            teacher = bundle.model if isinstance(stage.config, FinetuneConfig) and stage.config.distill else None
            seconds = estimate_seconds(bundle.model, data, stage.config, device, teacher=teacher)
            share = 1.0 if stage.name == "dense" else _share_left(recipe)
            parts.append(("train" if stage.name == "dense" else "fine-tune", seconds * share + evaluation))
        elif stage.name in ("dense", "prune"):
            parts.append((stage.name, evaluation))
        if recipe.export is not None and (stage.name == "export" or (stage.name == "dense" and recipe.compares)):
            parts.append(("export", _export_seconds(bundle, recipe.export)))
        if isinstance(stage.config, LatencyConfig):
            alone, in_turns = stage.config.seconds, 2 * stage.config.seconds + stage.config.max_seconds / 2
            parts.append(("latency", in_turns if recipe.compares else alone))
    return _summed(parts)


def sentence(parts: Sequence[tuple[str, float]]) -> str:
    """Return the estimate as a line, such as `estimated 3 min: train 1 min 30 s, fine-tune 50.0 s`."""
    shown = [f"{name} {duration(seconds)}" for name, seconds in parts if seconds >= 1]
    total = duration(sum(seconds for _, seconds in parts))
    return f"estimated {total}" + (f": {', '.join(shown)}" if shown else "")


def _summed(parts: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    totals: dict[str, float] = {}
    for name, seconds in parts:
        totals[name] = totals.get(name, 0.0) + seconds
    return list(totals.items())


def _share_left(recipe: Recipe) -> float:
    """Return the share of MACs that the recipe's budgets leave for fine-tuning to run through."""
    share = 1.0
    for pruning in recipe.prunings:
        budget: Any = getattr(pruning, "budget", None)
        share *= getattr(budget, "macs", None) or 1.0
    return share


@torch.no_grad()
def _evaluation_seconds(bundle: Bundle, data: Data | None, device: str) -> float:
    """Return the time of one pass over the test data, from one batch."""
    if data is None or data.test is None:
        return 0.0
    images = next(iter(data.test.batches()))[0].to(device)
    with on_device(bundle.model, device):
        bundle.model(images[:8])
        started = time.perf_counter()
        logits_of(bundle.model(images)).sum().item()
    return (time.perf_counter() - started) * len(data.test)


def _export_seconds(bundle: Bundle, config: ExportConfig) -> float:
    layers = sum(1 for module in bundle.model.modules() if not any(module.children()))
    return (2 if config.exporter == "auto" else 1) * EXPORT_SECONDS_PER_LAYER * layers
