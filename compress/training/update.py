"""One update: a model, what the update computes, and everything of the run that changes the weights by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.tensors import restore
from compress.training.config import TrainerConfig
from compress.training.engine import Engine
from compress.training.masks import MaskKeeper
from compress.training.optimizer import make_optimizer, make_schedule
from compress.training.replicas import replicas
from compress.training.step import TrainingStep
from evaluators.datasets.batch import Batch


class Updater:
    """Makes the updates of one run: optimiser, schedule, precision, masks, clipping, averaging.

    The model moves to `device` and is changed in place. Everything random in update n depends on (seed, n) alone,
    so a run that stops between any two updates and goes on elsewhere ends with the same weights.

    Attributes:
        model: as given.
        step: what an update computes.
        engine: device and precision.
        result: the module whose weights count: the average where there is one.
    """

    def __init__(
        self,
        model: nn.Module,
        step: TrainingStep,
        config: TrainerConfig,
        *,
        device: str | torch.device,
        seed: int,
        batches: int,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Prepare the first update.

        Args:
            model: what is trained. Modules of it with `set_training_progress(fraction)` are told before each update
                how much of the training is done.
            step: what an update computes.
            config: the settings.
            device: "cpu", "cuda", "cuda:1", "mps".
            seed: of dropout, drop path and whatever else is random in the updates.
            batches: updates per epoch.
            masks: True where a weight is kept, by parameter name.

        Raises:
            InputError: the precision is not one of the device.
        """
        self.model, self.step, self.config, self.seed = model, step, config, seed
        self.engine = Engine(device, config.precision, config.channels_last)
        self.engine.placed(model)
        step.prepare(model, self.engine)
        replicas().align(model, step)
        self.optimizer = step.optimizer = make_optimizer(config, model, step)
        self.schedule = make_schedule(config, self.optimizer, batches)
        self.keeper = MaskKeeper(model, masks) if masks else None
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema is not None else None
        self.result: nn.Module = model if self.ema is None else self.ema.module
        self.updates = batches * config.epochs
        self.scheduled: list[Any] = [part for part in model.modules() if hasattr(part, "set_training_progress")]
        self._fabric = self.engine.fabric
        self._forward, self._optimizer = self._fabric.setup(model, self.optimizer, move_to_device=False)

    def train(self) -> None:
        """Put model and step into training mode."""
        self.model.train()
        self.step.train()

    def update(self, batch: Batch, number: int) -> Tensor:
        """Make update `number` (from 0) on `batch` and return its loss.

        Of several devices that train the model together, each gets its own share; the loss is the mean over all.
        The loss stays on the device, so that nobody waits for it. A model that works in place changes the batch.
        Raises InputError where the step gives no loss, or, in the first update, nothing has a gradient.
        """
        seed_update(self.seed, number, self.engine.device)
        self.schedule.step_update(number)
        for part in self.scheduled:
            part.set_training_progress(min(1.0, number / self.updates))
        self._optimizer.zero_grad()
        loss = self._checked(self.step.loss(self._forward, self.engine.moved(batch), number))
        if loss.requires_grad:
            self.engine.backward(loss)
        if number == 0 and not any(
            each.grad is not None for part in (self.model, self.step) for each in part.parameters()
        ):
            raise InputError(
                f"step: nothing would be learned from what {type(self.step).__name__}.loss gives: no parameter has a "
                "gradient; the loss must not be detached, or computed under torch.no_grad"
            )
        loss = loss.detach().clone()
        self.engine.average(self._learning(), loss)
        replicas().average_statistics(self.model, self.step)
        if self.keeper is not None:
            self.keeper.before_step()
        if self.config.clip_grad is not None:
            self._fabric.clip_gradients(
                self._forward, self._optimizer, max_norm=self.config.clip_grad, error_if_nonfinite=False
            )
        self._optimizer.step()
        self.step.after_update(self.model, number)
        if self.keeper is not None:
            self.keeper.after_step(self.optimizer)
        if self.ema is not None:
            self.ema.update(self.model, step=number + 1)
        return loss

    def _learning(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the run's optimiser has."""
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])

    def _checked(self, loss: Any) -> Tensor:
        """Return what a step, which may be a third party's, gives as its loss, as a scalar."""
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            what = f"a tensor {loss.dtype} {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r:.80}"
            raise InputError(f"step: {type(self.step).__name__}.loss gave {what}; allowed: a tensor of one number")
        return loss.reshape(())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next update depends on, by reference."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "scaler": self._fabric.strategy.precision.state_dict(),
            "step": self.step.state_dict(),
            "step optimizers": {name: each.state_dict() for name, each in self.step.optimizers().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, as `state_dict` gave it.

        Raises:
            KeyError, RuntimeError, ValueError: it belongs to another model, step or optimiser.
        """
        restore(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            restore(self.ema.module, state["ema"])
        self._fabric.strategy.precision.load_state_dict(state["scaler"])
        self.step.load_state_dict(state["step"])
        for name, optimizer in self.step.optimizers().items():
            optimizer.load_state_dict(state["step optimizers"][name])


def seed_update(seed: int, number: int, device: torch.device) -> None:
    """Seed what update `number` of a run draws from: PyTorch's generators here and on `device`, and NumPy's."""
    mixed = (seed * 1_000_003 + number) % 2**63
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed takes longer: it looks for every kind of device
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(mixed)
    elif device.type == "mps":
        torch.mps.manual_seed(mixed)
    np.random.seed(mixed % 2**32)  # timm's Mixup draws from numpy's global generator
