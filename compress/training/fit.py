"""Training and fine-tuning: a loop that can be killed at any moment and goes on to the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.batch_norm import norm_layers, recalibrate
from compress.core.environment import convolutions
from compress.core.errors import CompressError, Diverged, InputError
from compress.core.modes import modes_kept
from compress.core.progress import track
from compress.distill import DistillConfig
from compress.training.checkpoint import FILE_NAME, Position, discard, read_checkpoint, sweep, write_checkpoint
from compress.training.config import TrainConfig
from compress.training.step import Stepper
from evaluators.datasets.loaders import placed
from evaluators.tasks.accuracy import evaluate, logits_of
from spaces.checkpoint import first_infinite

if TYPE_CHECKING:
    from evaluators.datasets import Data, Loader

__all__ = ["FinetuneConfig", "FitResult", "TrainConfig", "estimate_seconds", "fit"]


class FinetuneConfig(TrainConfig):
    """How a compressed model recovers: training settings with a lower learning rate, and a teacher if asked."""

    epochs: int = Field(5, ge=0, description="passes over the training data")
    lr: float = Field(2e-4, gt=0, description="learning rate after warm-up")
    distill: DistillConfig | None = Field(None, description="learn from the dense model as well as from the labels")


@dataclass(frozen=True)
class FitResult:
    """What a training run did.

    Attributes:
        epochs_run: whole epochs, over all resumes.
        seconds: wall clock, over all resumes.
        history: one event per epoch: epoch, update, lr, loss, and top1, top5, test_loss where it was evaluated.
        stopped_by: "epochs", "minutes" or "patience".
        best_epoch: the epoch whose weights were kept with `keep: best`, else None.
    """

    epochs_run: int
    seconds: float
    history: list[dict[str, Any]]
    stopped_by: str
    best_epoch: int | None


def fit(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
    masks: Mapping[str, Tensor] | None = None,
    teacher: nn.Module | None = None,
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    log: Callable[[dict[str, Any]], None] | None = None,
    label: str = "training",
) -> FitResult:
    """Train `model` in place; it comes back in eval mode, on the device where it was.

    A run killed at any moment and resumed ends with the weights of an uninterrupted one, bit for bit, on the CPU of
    the same machine with the same number of threads: everything random depends on the seed and the number of the
    update (a `minutes` budget depends on the clock, of course). On a GPU `deterministic` asks for that. The process'
    random state is left as it was.

    Args:
        model: gives logits (batch, classes).
        data: its `train` is learnt from, its `test` evaluated on.
        config: the settings; a `FinetuneConfig` may ask for distillation.
        device: "cpu", "cuda", "cuda:1", "mps".
        seed: of everything random in the updates.
        masks: True where a weight is kept, by parameter name; the others are exactly 0 after every update.
        teacher: the model that `config.distill` learns from; not used without it.
        checkpoint_dir: where the run's state is kept; None keeps none.
        resume: go on from the state there, if there is one; else it is deleted.
        log: gets one event per epoch.
        label: what the progress bar calls this.

    Raises:
        InputError: no training data, a damaged checkpoint, one of other settings, no teacher to learn from.
        Diverged: the loss is not finite (the last checkpoint is from before).
        CompressError: memory is short.
    """
    home = next(model.parameters()).device
    with _isolated(device, config.deterministic):
        run = _Run(model, data, config, device, seed, masks, teacher, checkpoint_dir, log, label)
        try:
            run.start(resume)
            while run.position.stopped_by is None:
                run.epoch()
            return run.finish()
        except torch.OutOfMemoryError as error:
            raise CompressError(f"{label}: out of memory on {device}; lower data.batch_size or use bf16") from error
        finally:
            model.zero_grad(set_to_none=True)
            model.to(home).to(memory_format=torch.contiguous_format)


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        config: TrainConfig,
        device: str | torch.device,
        seed: int,
        masks: Mapping[str, Tensor] | None,
        teacher: nn.Module | None,
        checkpoint_dir: Path | None,
        log: Callable[[dict[str, Any]], None] | None,
        label: str,
    ) -> None:
        self.loader = placed(_training_split(data), device)
        self.test = None if data.test is None else placed(data.test, device)
        self.stepper = _stepper(model, data, config, device, seed, masks, teacher)
        self.reads = _reads(self.stepper.device)
        self.config, self.label, self.log = config, label, log
        if data.test is None and (config.keep == "best" or config.patience):
            raise InputError("keep: best and patience need test data, and there is none")
        self.path = None if checkpoint_dir is None else checkpoint_dir / FILE_NAME
        self.settings = {**config.neutral(), "seed": seed, "batches per epoch": len(self.loader)}
        if config.open_ended:
            del self.settings["epochs"]
        self.position = Position()
        self.best: dict[str, Tensor] | None = None
        self.pending: list[Tensor] = []

    def start(self, resume: bool) -> None:
        """Take up the checkpoint, or clear the way for a new one."""
        if self.path is not None:
            if resume and self.path.exists():
                sweep(self.path.parent)
                self._restore(self.path)
            else:
                discard(self.path.parent)
        self.started = time.monotonic() - self.position.seconds
        self.saved = time.monotonic()
        here = self.position
        if here.stopped_by in (None, "epochs"):
            here.stopped_by = "epochs" if self.config.epochs <= here.epoch else None

    def _restore(self, path: Path) -> None:
        self.position, tensors = read_checkpoint(path, self.settings)
        try:
            self.stepper.load_state_dict(tensors)
            self.best = tensors["best"]
        except (KeyError, RuntimeError, ValueError) as error:
            problem = f"cannot resume from {path}: it belongs to another model; start without --resume"
            raise InputError(problem) from error

    def epoch(self) -> None:
        """Train to the end of the current epoch, or until time is up."""
        here = self.position
        batches = self.loader.epoch(here.epoch, start=here.batch)
        name = f"{self.label} {here.epoch + 1}/{self.config.epochs}"
        self.stepper.model.train()
        for images, labels in track(batches, name, total=len(self.loader) - here.batch):
            self.pending.append(self.stepper.step(images, labels, here.update))
            here.batch += 1
            here.update += 1
            if len(self.pending) >= self.reads:
                self._settle()
            here.seconds = time.monotonic() - self.started
            if self.config.minutes is not None and here.seconds >= 60 * self.config.minutes:
                here.stopped_by = "minutes"
                break
            if time.monotonic() - self.saved >= self.config.checkpoint_seconds:
                self._save()
        self._close_epoch()

    def _settle(self) -> None:
        """Read the losses of the last updates, all at once: reading one makes this process wait for the device."""
        if not self.pending:
            return
        losses, self.pending = torch.stack(self.pending).tolist(), []
        for update, loss in enumerate(losses, self.position.update - len(losses) + 1):
            if not math.isfinite(loss):
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
        name = first_infinite(self.stepper.model)
        if name is not None:
            raise self._diverged(f"the weight {name!r} is not finite", self.position.update)

    def _close_epoch(self) -> None:
        here = self.position
        self._check()
        event: dict[str, Any] = {
            "event": "epoch",
            "epoch": here.epoch + 1,
            "epochs": self.config.epochs,
            "update": here.update,
            "lr": self.stepper.optimizer.param_groups[0]["lr"],
            "loss": here.loss_sum / max(here.batch, 1),
        }
        last = here.stopped_by is not None or here.epoch + 1 == self.config.epochs
        here.batch, here.loss_sum = 0, 0.0
        if here.stopped_by is None:
            here.epoch += 1
            here.stopped_by = "epochs" if last else None
        every = self.config.evaluate_every
        if self.test is not None and every and (last or event["epoch"] % every == 0):
            event |= self._evaluate(self.test, event["epoch"])
        here.seconds = time.monotonic() - self.started
        here.history.append({**event, "seconds": round(here.seconds, 3)})
        if self.log is not None:
            self.log(here.history[-1])
        self._save()

    def _evaluate(self, test: Loader, epoch: int) -> dict[str, Any]:
        here, model = self.position, self.stepper.result
        metrics = evaluate(model, test, self.stepper.device)
        top1 = metrics["top1"] or 0.0
        if top1 > here.best_top1:
            here.best_top1, here.best_epoch = top1, epoch
            if self.config.keep == "best":
                self.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        elif self.config.patience and epoch - here.best_epoch >= self.config.patience:
            here.stopped_by = here.stopped_by or "patience"
        return {"top1": top1, "top5": metrics["top5"], "test_loss": metrics["loss"]}

    def _save(self) -> None:
        if self.path is None:
            return
        self._check()
        self.position.seconds = time.monotonic() - self.started
        write_checkpoint(self.path, self.position, self.settings, {**self.stepper.state_dict(), "best": self.best})
        self.saved = time.monotonic()

    def finish(self) -> FitResult:
        """Put the weights that count into the model, renew its batch-norm statistics, and sum up."""
        here, stepper, model = self.position, self.stepper, self.stepper.model
        if self.best is not None:
            model.load_state_dict(self.best)
        elif stepper.ema is not None:
            model.load_state_dict(stepper.ema.module.state_dict())
        if self.config.bn_recalibrate and norm_layers(model):
            recalibrate(model, self.loader.epoch(here.epoch), self.config.bn_recalibrate, stepper.device)
        model.eval()
        stopped_by = here.stopped_by or "epochs"
        best_epoch = here.best_epoch if self.best is not None else None
        return FitResult(here.epoch, here.seconds, here.history, stopped_by, best_epoch)


def _reads(device: torch.device) -> int:
    """Return after how many updates the losses are read; at each reading a GPU catches up with this process."""
    return 1 if device.type == "cpu" else 50


def _training_split(data: Data) -> Loader:
    if data.train is None or len(data.train) == 0:
        raise InputError("there is no training data; name a data set in `data`")
    return data.train


def _stepper(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    device: str | torch.device,
    seed: int,
    masks: Mapping[str, Tensor] | None,
    teacher: nn.Module | None,
) -> Stepper:
    return Stepper(
        model,
        config,
        device=device,
        seed=seed,
        batches=len(_training_split(data)),
        num_classes=data.num_classes,
        masks=masks,
        teacher=teacher,
        distill=config.distill if isinstance(config, FinetuneConfig) else None,
    )


@contextmanager
def _isolated(device: str | torch.device, deterministic: bool) -> Iterator[None]:
    """Leave the random state of this process, and how a GPU chooses its algorithms, as they were."""
    where = torch.device(device)
    gpus = [where.index or 0] if where.type == "cuda" else []
    numpy_state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus), convolutions(str(where), deterministic):
            yield
    finally:
        np.random.set_state(numpy_state)


def estimate_seconds(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    device: str | torch.device = "cpu",
    *,
    masks: Mapping[str, Tensor] | None = None,
    teacher: nn.Module | None = None,
) -> float:
    """Return how many seconds `fit` will take: three updates and one test batch timed, after two to warm up.

    Weights, buffers, modes and the process' random state are afterwards as they were.
    """
    with _isolated(device, config.deterministic), _unchanged(model):
        stepper = _stepper(model, data, config, device, 0, masks, teacher)
        model.train()
        loader = placed(_training_split(data), device)
        batches = cycle(islice(loader.epoch(0), 5))
        update = median([_timed_update(stepper, batches, number) for number in range(5)][2:])
        total = update * len(loader) * config.epochs
        if data.test is not None and config.evaluate_every:
            evaluations = math.ceil(config.epochs / config.evaluate_every)
            total += _timed_forward(stepper, data.test) * len(data.test) * evaluations
    return total if config.minutes is None else min(total, 60 * config.minutes)


def _timed_update(stepper: Stepper, batches: Iterator[tuple[Tensor, Tensor]], number: int) -> float:
    start = time.perf_counter()
    images, labels = next(batches)
    stepper.step(images, labels, number).item()  # .item() waits for a GPU
    return time.perf_counter() - start


@torch.no_grad()
def _timed_forward(stepper: Stepper, test: Loader) -> float:
    model = stepper.result.eval()
    start = time.perf_counter()
    images, _ = next(iter(test.batches()))
    logits_of(model(images.to(stepper.device))).sum().item()
    return time.perf_counter() - start


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put weights, buffers, gradients, modes and device back after the block."""
    home = next(model.parameters()).device
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with modes_kept(model):
            yield
    finally:
        model.to(home).to(memory_format=torch.contiguous_format)
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
