"""Trainings of benchmarks, each done once: what is finished is read from its folder, what was killed goes on there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.core.atomic import write_json
from compress.training.config import FitConfig
from compress.training.fit import fit
from evaluators.cost import count_macs
from evaluators.datasets import Data
from evaluators.tasks.evaluation import evaluate


@dataclass(frozen=True)
class Start:
    """A model, how it is trained, and what it learns from besides the data."""

    model: nn.Module
    config: FitConfig
    teacher: nn.Module | None = None


def trained_once(
    place: Path,
    start: Callable[[], Start],
    data: Data,
    *,
    seed: int,
    device: str,
    before: bool = False,
) -> dict[str, Any]:
    """Return macs, params, updates, minutes and top-1 on the test images of what `start` gives, trained in `place`.

    Args:
        place: the folder of its checkpoint and figures.
        start: makes what is trained; not called where that is finished.
        data: to learn from and to judge on.
        seed: of the training.
        device: where it runs.
        before: judge it before the training as well, as top1_before.
    """
    file = place / "figures.json"
    if file.is_file():
        known: dict[str, Any] = json.loads(file.read_text())
        return known
    assert data.test is not None
    place.mkdir(parents=True, exist_ok=True)
    given = start()
    model, checkpoint = given.model, place / "checkpoint"
    shape = data.preprocessing.input_size
    figures = {
        "macs": count_macs(model, torch.zeros(1, *shape)),
        "params": sum(parameter.numel() for parameter in model.parameters()),
    }
    if before:
        figures["top1_before"] = evaluate(model.to(device), data.test, data.task, device)["top1"]
    result = fit(
        model,
        data,
        given.config,
        device=device,
        seed=seed,
        teacher=given.teacher,
        checkpoint_dir=checkpoint,
        resume=checkpoint.is_dir(),
        label=place.name,
    )
    figures["updates"] = result.history[-1]["update"]
    figures["top1"] = evaluate(model.to(device), data.test, data.task, device)["top1"]
    figures["minutes"] = round(result.seconds / 60, 2)
    write_json(file, figures)
    return figures
