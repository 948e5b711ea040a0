"""The optimiser and the learning-rate schedule that a section of a recipe asks for, by timm's factories."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from compress.training.config import TrainerConfig
from compress.training.step import TrainingStep


def make_optimizer(config: TrainerConfig, model: nn.Module, step: TrainingStep) -> Optimizer:
    """Return the optimiser of the model's parameters and of the groups that `step` adds to them."""
    optimizer = create_optimizer_v2(
        model,
        config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        filter_bias_and_bn=not config.decay_norm_and_bias,
    )
    for group in step.parameter_groups(config.weight_decay):
        optimizer.add_param_group(group)
    return optimizer


def make_schedule(config: TrainerConfig, optimizer: Optimizer, batches: int) -> Scheduler:
    """Return timm's scheduler, stepped per update; `batches` is updates per epoch."""
    warmup = 0.05 * config.epochs if config.warmup_epochs is None else config.warmup_epochs
    warmup = round(warmup * batches) / batches
    cosine = config.schedule == "cosine"  # starts where warm-up ends; steps are counted from the first epoch
    make: Any = create_scheduler_v2  # its annotations say int where fractions of an epoch work
    schedule, _ = make(
        optimizer,
        "multistep" if config.schedule == "step" else config.schedule,
        num_epochs=max(config.epochs - warmup * cosine, 1 / batches),
        # timm lets a milestone m take effect at m - 1; half an update more puts it at the first of the next epoch.
        decay_milestones=[epoch + 0.5 / batches for epoch in config.decay_epochs],
        decay_rate=config.decay_rate,
        min_lr=config.min_lr,
        warmup_lr=config.warmup_lr,
        warmup_epochs=warmup,
        warmup_prefix=cosine,
        step_on_epochs=False,
        updates_per_epoch=batches,
    )
    result: Scheduler = schedule
    return result
