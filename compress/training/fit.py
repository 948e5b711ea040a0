"""Training and fine-tuning as a section of a recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.training.config import FitConfig
from compress.training.position import FitResult
from compress.training.step import StepContext
from compress.training.trainer import Trainer

if TYPE_CHECKING:
    from evaluators.datasets import Data


def fit(
    model: nn.Module,
    data: Data,
    config: FitConfig,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
    masks: Mapping[str, Tensor] | None = None,
    teacher: nn.Module | None = None,
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    log: Callable[[dict[str, Any]], None] | None = None,
    label: str = "training",
    tell: Callable[[str], None] | None = None,
) -> FitResult:
    """Train `model` in place by the step that `config` asks for; see `Trainer`, whose arguments these are.

    Args:
        model: what is trained.
        data: what it learns from and is evaluated on.
        config: the settings.
        device: "cpu", "cuda", "cuda:1", "mps".
        seed: of everything random.
        masks: True where a weight is kept, by parameter name.
        teacher: the model before compression, which stays as it is; not used by a step that asks none.
        checkpoint_dir: where the run's state is kept; None keeps none.
        resume: go on from the state there, if there is one; else it is deleted.
        log: gets one event per epoch.
        label: what the progress bar calls this.
        tell: gets what the step remarks before the first update, a sentence each.

    Raises:
        InputError: no training data, a damaged checkpoint, one of other settings, no teacher to learn from.
        Diverged: the loss is not finite (the last checkpoint is from before).
        CompressError: memory is short.
    """
    step = config.make_step(StepContext(config, data, teacher), seed)
    trainer = Trainer(
        model,
        step,
        data,
        config,
        device=device,
        seed=seed,
        masks=masks,
        checkpoint_dir=checkpoint_dir,
        log=log,
        label=label,
        tell=tell,
    )
    return trainer.run(resume)
