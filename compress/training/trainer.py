"""The loop around the updates: epochs, evaluation, what is kept, checkpoints and resume; killed at any moment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.core.batch_norm import norm_layers, recalibrate
from compress.core.errors import CompressError, Diverged, InputError
from compress.core.plain import plain_json
from compress.core.progress import track
from compress.core.tensors import restore
from compress.training.checkpoint import FILE_NAME, discard, read_checkpoint, sweep, write_checkpoint
from compress.training.config import TrainerConfig
from compress.training.isolation import isolated
from compress.training.losses import Losses
from compress.training.position import FitResult, Position
from compress.training.replicas import replicas, shared, shared_training
from compress.training.step import TrainingStep
from compress.training.update import Updater
from evaluators.datasets.loaders import placed
from evaluators.tasks.evaluation import evaluate
from spaces.checkpoint import first_infinite

if TYPE_CHECKING:
    from evaluators.datasets import Data, Loader


SHORT = 1.0
"""Seconds since the last checkpoint of which the end of an epoch writes none: a run that goes on repeats them."""


class Trainer:
    """Trains a model by a `TrainingStep`, of which it knows no more than that.

    A run killed at any moment and resumed ends with the weights of an uninterrupted one, bit for bit, on the CPU of
    the same machine with the same number of threads: everything random depends on the seed and the number of the
    update (a `minutes` budget depends on the clock, of course). On a GPU `deterministic` asks for that.

    Where this process is one of several that train the model (`compress.training.replicas`), each learns from its share
    of every batch, and the leader alone evaluates, writes and reads checkpoints, and looks at the clock.
    """

    def __init__(
        self,
        model: nn.Module,
        step: TrainingStep,
        data: Data,
        config: TrainerConfig,
        *,
        device: str | torch.device = "cpu",
        seed: int = 0,
        masks: Mapping[str, Tensor] | None = None,
        checkpoint_dir: Path | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
        label: str = "training",
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare one run; nothing is moved or written before `run`.

        Args:
            model: what is trained, in place.
            step: what one update computes.
            data: its `train` is learnt from, its `test` evaluated on.
            config: the settings.
            device: "cpu", "cuda", "cuda:1", "mps".
            seed: of everything random in the updates.
            masks: True where a weight is kept, by parameter name; the others are exactly 0 after every update.
            checkpoint_dir: where the run's state is kept; None keeps none.
            log: gets one event per epoch.
            label: what the progress bar calls this.
            tell: gets what the step remarks before the first update, a sentence each.

        Raises:
            InputError: there is no training data, or no test data to choose or stop by.
        """
        self.loader = training_split(data)
        if data.test is None and (config.keep == "best" or config.patience):
            raise InputError("keep: best and patience need test data, and there is none")
        self.model, self.step, self.config = model, step, config
        self.task, self.test = data.task, data.test
        self.replicas = replicas()
        self.device, self.seed, self.masks, self.log, self.label = device, seed, masks, log, label
        self.tell = tell
        self.path = None if checkpoint_dir is None or not self.replicas.leads else checkpoint_dir / FILE_NAME
        self.settings = {**config.neutral(), "seed": seed, "batches per epoch": len(self.loader)}
        if config.open_ended:
            del self.settings["epochs"]
        self.position = Position()
        self.best: dict[str, Tensor] | None = None
        self.judged: tuple[int, dict[str, float | None]] | None = None
        """After which update the weights that count so far were evaluated, and how good they were."""

    def run(self, resume: bool = False) -> FitResult:
        """Train to the end; the model comes back in eval mode where it was, and the process' random state as it was.

        Args:
            resume: go on from the state in `checkpoint_dir`, if there is one; else it is deleted.

        Raises:
            InputError: a damaged checkpoint, one of other settings, or what the step raises.
            Diverged: the loss is not finite (the last checkpoint is from before).
            CompressError: memory is short.
        """
        home = next(self.model.parameters()).device
        with shared_training(), isolated(self.device, self.config.deterministic):
            try:
                self._start(resume)
                if self.tell is not None:
                    for remark in self.step.remarks(self.model):
                        self.tell(remark)
                while self.position.stopped_by is None:
                    self._epoch()
                return self._finish()
            except torch.OutOfMemoryError as error:
                advice = "lower data.batch_size or use bf16"
                raise CompressError(f"{self.label}: out of memory on {self.device}; {advice}") from error
            finally:
                self.model.zero_grad(set_to_none=True)
                self.model.to(home).to(memory_format=torch.contiguous_format)

    def _start(self, resume: bool) -> None:
        """Move everything to the device; take up the checkpoint, or clear the way for a new one."""
        self.replicas.meet()
        self.loader = placed(self.loader, self.device)
        self.shares = shared(self.loader, self.replicas)
        self.test = None if self.test is None else placed(self.test, self.device)
        where: dict[str, Any] = {"device": self.device, "seed": self.seed, "batches": len(self.loader)}
        self.updater = Updater(self.model, self.step, self.config, masks=self.masks, **where)
        self.losses = Losses(self.updater.engine.device)
        state = self.replicas.led(lambda: self._kept(resume))
        if state is not None:
            self._restore(*state)
        self.started = time.monotonic() - self.position.seconds
        self.saved = time.monotonic()
        here = self.position
        if here.stopped_by in (None, "epochs"):
            here.stopped_by = "epochs" if self.config.epochs <= here.epoch else None

    def _kept(self, resume: bool) -> tuple[Position, dict[str, Any]] | None:
        """Return the state to go on from; where there is none, clear the way for a new one."""
        if self.path is None:
            return None
        if resume and self.path.exists():
            sweep(self.path.parent)
            return read_checkpoint(self.path, self.settings)
        discard(self.path.parent)
        return None

    def _restore(self, position: Position, tensors: dict[str, Any]) -> None:
        self.position = position
        try:
            self.updater.load_state_dict(tensors)
            self.best = tensors["best"]
        except (KeyError, RuntimeError, ValueError) as error:
            problem = f"cannot resume from {self.path}: it belongs to another model; start without --resume"
            raise InputError(problem) from error

    def _epoch(self) -> None:
        """Train to the end of the current epoch, or until time is up."""
        here = self.position
        batches = self.shares.epoch(here.epoch, start=here.batch)
        name = f"{self.label} {here.epoch + 1}/{self.config.epochs}"
        self.updater.train()
        if here.batch == 0:
            self.step.begin_epoch(self.model, here.epoch)
        for batch in track(batches, name, **self._extent()):
            self.losses.add(self.updater.update(batch, here.update))
            here.batch += 1
            here.update += 1
            if self.losses.due:
                self._settle()
            here.seconds = time.monotonic() - self.started
            if self.config.minutes is not None and self.replicas.led(self._late):
                here.stopped_by = "minutes"
                break
            if time.monotonic() - self.saved >= self.config.checkpoint_seconds:
                self._save()
        self._close_epoch()

    def _late(self) -> bool:
        return self.config.minutes is not None and self.position.seconds >= 60 * self.config.minutes

    def _extent(self) -> dict[str, int]:
        """Return how many batches there are and are done: of the training, or of an epoch where time may end it."""
        here, batches = self.position, len(self.loader)
        if self.config.minutes is not None:
            return {"total": batches, "done": here.batch}
        return {"total": batches * self.config.epochs, "done": here.update}

    def _settle(self) -> None:
        """Read the losses of the last updates."""
        losses = self.losses.read()
        for update, loss in enumerate(losses, self.position.update - len(losses) + 1):
            if not math.isfinite(loss) and self.replicas.leads:  # the others have the same losses, and wait for it
                raise self._diverged(f"the loss is {loss}", update)
            self.position.loss_sum += loss

    def _diverged(self, what: str, update: int) -> Diverged:
        kept = f"; the last checkpoint before it is {self.path}" if self.path is not None and self.path.exists() else ""
        return Diverged(
            f"{self.label}: {what} in epoch {self.position.epoch + 1}, update {update}: "
            f"try a lower lr (it is {self.config.lr:g}) or clip_grad: 1.0{kept}"
        )

    def _check(self) -> None:
        """Make sure that what is about to be evaluated or kept is sound: weights and running statistics."""
        self._settle()
        for part in (self.model, self.step):
            name = first_infinite(part)
            if name is not None and self.replicas.leads:
                raise self._diverged(f"the weight {name!r} is not finite", self.position.update)

    def _close_epoch(self) -> None:
        here = self.position
        self._check()
        self.replicas.check_alike(self.model, self.step)
        event: dict[str, Any] = {
            "event": "epoch",
            "epoch": here.epoch + 1,
            "epochs": self.config.epochs,
            "update": here.update,
            "lr": self.updater.optimizer.param_groups[0]["lr"],
            "loss": here.loss_sum / max(here.batch, 1),
        }
        last = here.stopped_by is not None or here.epoch + 1 == self.config.epochs
        if here.stopped_by is None and here.batch != len(self.loader):
            raise InputError(f"data: an epoch is {len(self.loader)} batches by its length, and gave {here.batch}")
        here.batch, here.loss_sum = 0, 0.0
        if here.stopped_by is None:
            self.step.end_epoch(self.model, here.epoch)
            event |= self.replicas.mean(self._figures())
            here.epoch += 1
            here.stopped_by = "epochs" if last else "step" if self.step.finished() else None
        every = self.config.evaluate_every
        if self.test is not None and every and (last or event["epoch"] % every == 0):
            event |= self._evaluate(self.test, event["epoch"])
        here.seconds = time.monotonic() - self.started
        here.history.append({**event, "seconds": round(here.seconds, 3)})
        if self.log is not None:
            self.log(here.history[-1])
        early = here.stopped_by not in (None, "epochs")  # not to be gone on with, whatever the clock says then
        if early or time.monotonic() - self.saved >= min(SHORT, self.config.checkpoint_seconds):
            self._save()

    def _figures(self) -> dict[str, Any]:
        """Return what the step, which may be a third party's, tells of the epoch, as JSON has it."""
        named = f"step: {type(self.step).__name__}.figures"
        figures = plain_json(self.step.figures(), named)
        if not isinstance(figures, dict):
            raise CompressError(f"{named} is {figures!r:.80}; allowed: a mapping of names to numbers")
        return figures

    def _evaluate(self, test: Loader, epoch: int) -> dict[str, Any]:
        here, model = self.position, self.updater.result
        metrics = self.replicas.led(lambda: evaluate(model, test, self.task, self.updater.engine.device))
        value = self.task.main_metric.of(metrics)
        better = self.task.main_metric.better(value, here.best)
        if better or self.config.keep == "last":
            self.judged = here.update, metrics
        if better:
            here.best, here.best_epoch = value, epoch
            if self.config.keep == "best":
                self.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        elif self.config.patience and epoch - here.best_epoch >= self.config.patience:
            here.stopped_by = here.stopped_by or "patience"
        return {"test_loss" if name == "loss" else name: value for name, value in metrics.items()}

    def _save(self) -> None:
        if self.path is None:
            return
        self._check()
        self.position.seconds = time.monotonic() - self.started
        write_checkpoint(self.path, self.position, self.settings, {**self.updater.state_dict(), "best": self.best})
        self.saved = time.monotonic()

    def _finish(self) -> FitResult:
        """Put the weights that count into the model, renew its batch-norm statistics, and sum up."""
        here, model = self.position, self.model
        if self.best is not None:
            restore(model, self.best)
        elif self.updater.result is not model:
            model.load_state_dict(self.updater.result.state_dict())
        renewed = bool(self.config.bn_recalibrate and norm_layers(model))
        if renewed:
            batches, device = self.loader.epoch(here.epoch), self.updater.engine.device
            recalibrate(model, batches, self.config.bn_recalibrate, device, self.task.forward)
        model.eval()
        best = here.best_epoch if self.best is not None else None
        metrics = None
        if self.judged is not None and not renewed and (best is not None or self.judged[0] == here.update):
            metrics = self.judged[1]
        return FitResult(here.epoch, here.seconds, here.history, here.stopped_by or "epochs", best, metrics)


def training_split(data: Data) -> Loader:
    """Return what is learnt from; InputError where there is nothing."""
    if data.train is None or len(data.train) == 0:
        raise InputError("data: there are no images to train on; name a data set (or a folder) that has some")
    return data.train
