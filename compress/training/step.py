"""One update of a model's weights: optimiser, schedule, precision, averaging, masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from compress.core.batch_norm import enough_values
from compress.core.errors import InputError
from compress.distill import LossConfig
from compress.training.config import TrainConfig
from compress.training.masks import MaskKeeper
from evaluators.datasets.loaders import moved
from evaluators.tasks.accuracy import logits_of

# Of torchvision's training heads: Szegedy et al. 2015, section 5; Inception as torchvision's guide has it.
AUXILIARY_WEIGHTS = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, batches: int) -> Scheduler:
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


def make_fabric(device: str | torch.device, precision: str) -> Any:
    """Return Lightning Fabric on one device of this process, at `precision` ("32", "bf16" or "16")."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision, Precision
    from lightning_fabric.plugins.environments import LightningEnvironment

    where = torch.device(device)
    if precision == "16" and where.type == "cpu":
        raise InputError('precision: "16" needs a GPU, the device is cpu; allowed here: "32", "bf16"')
    name = PRECISIONS[precision]
    plugin = Precision() if name == "32-true" else MixedPrecision(name, device=where.type)
    devices = 1 if where.type == "cpu" else [where.index or 0]
    # The environment is named so that a cluster's variables do not make Fabric look for other processes.
    return Fabric(accelerator=where.type, devices=devices, plugins=[plugin, LightningEnvironment()])


class Stepper:
    """A model with all that changes its weights; `step` makes one update.

    The model moves to `device` and is changed in place. Everything random in update n depends on (seed, n) alone,
    so a run that stops between any two updates and goes on elsewhere ends with the same weights.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        device: str | torch.device,
        seed: int,
        batches: int,
        num_classes: int,
        masks: Mapping[str, Tensor] | None = None,
        teacher: nn.Module | None = None,
        distill: LossConfig | None = None,
    ) -> None:
        """Take hold of `model`.

        Args:
            model: gives logits (batch, classes); of several outputs the first is used. The others, the logits of
                auxiliary heads, join the loss with the model's attribute `auxiliary_weight`, if it has that, and those
                of torchvision's GoogLeNet and Inception with the published weight. Modules with
                `set_training_progress(fraction)` are told before each update how much of the training is done.
            config: the settings.
            device: "cpu", "cuda", "cuda:1", "mps".
            seed: of dropout, drop path and mixing.
            batches: updates per epoch.
            num_classes: of the labels.
            masks: True where a weight is kept, by parameter name.
            teacher: gives the logits that `distill` compares with; moves to `device` in eval mode.
            distill: how the teacher joins the loss.

        Raises:
            InputError: the precision is not one of the device, or there is no teacher to learn from.
        """
        if distill is not None and teacher is None:
            raise InputError("distill needs a teacher, and there is none")
        self.model, self.config, self.seed, self.distill = model, config, seed, distill
        self.fabric = make_fabric(device, config.precision)
        self.device: torch.device = self.fabric.device
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(self.device).to(memory_format=self.layout)
        self.teacher = None
        if teacher is not None and distill is not None:
            self.teacher = teacher.to(self.device).to(memory_format=self.layout).eval()
        self.optimizer = create_optimizer_v2(
            model,
            config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            filter_bias_and_bn=not config.decay_norm_and_bias,
        )
        self.schedule = make_schedule(config, self.optimizer, batches)
        self.keeper = MaskKeeper(model, masks) if masks else None
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema is not None else None
        self.mixing = _mixing(config, num_classes)
        self.updates = batches * config.epochs
        self.scheduled: list[Any] = [part for part in model.modules() if hasattr(part, "set_training_progress")]
        self._forward, self._optimizer = self.fabric.setup(model, self.optimizer, move_to_device=False)

    @property
    def result(self) -> nn.Module:
        """The module whose weights count: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def step(self, images: Tensor, labels: Tensor, update: int) -> Tensor:
        """Make update number `update` (from 0) on images (batch, C, H, W) and labels (batch,); return the loss.

        The loss stays on the device, so that nobody waits for it. A model that works in place changes the images.

        Raises:
            InputError: the model gives no logits, or its batch norms cannot learn from one image.
        """
        self._seed(update)
        self.schedule.step_update(update)
        for part in self.scheduled:
            part.set_training_progress(min(1.0, update / self.updates))
        self._optimizer.zero_grad()
        images = moved(images, self.device).contiguous(memory_format=self.layout)
        loss = self._loss(images, moved(labels, self.device))
        self.fabric.backward(loss)
        if self.keeper is not None:
            self.keeper.before_step()
        if self.config.clip_grad is not None:
            self.fabric.clip_gradients(
                self._forward, self._optimizer, max_norm=self.config.clip_grad, error_if_nonfinite=False
            )
        self._optimizer.step()
        if self.keeper is not None:
            self.keeper.after_step(self.optimizer)
        if self.ema is not None:
            self.ema.update(self.model, step=update + 1)
        return loss.detach()

    def _seed(self, update: int) -> None:
        mixed = (self.seed * 1_000_003 + update) % 2**63
        torch.default_generator.manual_seed(mixed)  # torch.manual_seed takes longer: it looks for every kind of device
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(mixed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(mixed)
        if self.mixing is not None:
            np.random.seed(mixed % 2**32)  # timm's Mixup draws from numpy's global generator

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        targets = labels
        smoothing = self.config.label_smoothing
        if self.mixing is not None and len(images) > 1:
            even = len(images) // 2 * 2  # Mixup pairs an image with another: an odd one is left out
            images, targets = self.mixing(images[:even].clone(), labels[:even])
            smoothing = 0.0  # is in the mixed targets already
        guidance = self._guidance(images)
        with enough_values():
            output = self._forward(images)
        logits = logits_of(output)
        if logits.ndim != 2:
            raise InputError(f"model: it returns {tuple(logits.shape)}; training needs logits (N, classes)")
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        weight = getattr(self.model, "auxiliary_weight", AUXILIARY_WEIGHTS.get(type(output).__name__, 0.0))
        for auxiliary in output[1:] if weight and not isinstance(output, Tensor) else ():
            loss = loss + weight * F.cross_entropy(auxiliary, targets, label_smoothing=smoothing)
        if self.distill is None or guidance is None:
            return loss
        if guidance.shape != logits.shape:
            raise InputError(f"the teacher gives {guidance.shape[1]} classes, the model {logits.shape[1]}")
        return self.distill.combine(logits, guidance.to(logits.dtype), loss)

    @torch.no_grad()
    def _guidance(self, images: Tensor) -> Tensor | None:
        """Return the teacher's logits; it gets images of its own, since a model may change them in place."""
        if self.teacher is None:
            return None
        with self.fabric.autocast():
            return logits_of(self.teacher(images.clone()))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next update depends on, by reference."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as `state_dict` gave it.

        Raises:
            KeyError, RuntimeError, ValueError: it belongs to another model or optimiser.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])


def _mixing(config: TrainConfig, num_classes: int) -> Mixup | None:
    if config.mixup == 0 and config.cutmix == 0:
        return None
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)
