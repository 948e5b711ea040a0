"""What a stage has at hand: while it runs, and before anything runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.bundle import Bundle
from compress.core.environment import on_device
from compress.core.tensors import computed
from evaluators.datasets import Data

if TYPE_CHECKING:
    from compress.runs.recipe import Recipe


@dataclass
class Context:
    """What a stage may use besides the artifact and its config.

    Attributes:
        recipe: the whole recipe.
        data: the recipe's data, fitted to the model; None without data, and before there is a model.
        device: such as "cpu" or "cuda:0".
        run: the run's directory.
        directory: the stage's own.
        resume: whether the run goes on where another process was stopped.
        log: takes an event for log.jsonl.
        compares: whether the recipe makes another model of the first one.
        baseline: loads the first model, with which the others are compared.
        baseline_onnx: where that lies as ONNX, if the recipe exports.
        model_file: where the winner is written as ONNX.
        step: the number of this act among those of one config.
        earlier: the records of the acts before, each with name, seconds, metrics and details.
        details: what is written of this act to its details.json; `notes` (sentences) are shown in the report,
            `in_report` is added to report.json, and networks `beside` the run's, each with name, seconds, metrics and
            onnx (a path in the run, or None), are timed and shown beside it.
        afterwards: called once the act is recorded as finished, to clear up.
        others: devices beside `device`, for stages that have several processes.
    """

    recipe: Recipe
    data: Data | None
    device: str
    run: Path
    directory: Path
    resume: bool
    log: Callable[[dict[str, Any]], None]
    compares: bool
    baseline: Callable[[], Bundle]
    baseline_onnx: Path
    model_file: Path
    step: int
    earlier: Sequence[Mapping[str, Any]]
    details: dict[str, Any] = field(default_factory=dict)
    afterwards: list[Callable[[], None]] = field(default_factory=list)
    others: Sequence[str] = ()


@dataclass
class Outlook:
    """What is known before anything is run: the model that the run starts from, its data, and the recipe.

    Attributes:
        bundle: the model before any stage.
        data: its data; None without.
        recipe: the whole recipe.
        device: such as "cpu" or "cuda:0".
        compares: whether the recipe makes another model of it.
        share_left: the share of MACs that the recipe's budgets leave in the end.
        steps: collects the details of each removal that a dry run foresees.
        notes: collects sentences that a dry run shows.
    """

    bundle: Bundle
    data: Data | None
    recipe: Recipe
    device: str
    compares: bool
    share_left: float
    steps: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def evaluation(self) -> float:
        """Seconds of one pass over the test data, from one batch."""
        if self.data is None or self.data.test is None:
            return 0.0
        model, task = self.bundle.model, self.data.task
        batch = next(iter(self.data.test.batches())).to(self.device)
        with on_device(model, self.device), torch.no_grad():
            task.forward(model, batch.part(0, 8))
            started = time.perf_counter()
            computed(task.forward(model, batch))
        return (time.perf_counter() - started) * len(self.data.test)
