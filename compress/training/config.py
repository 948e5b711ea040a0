"""How a model is trained: the settings of a recipe's section `train`, which `finetune` and others add to."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from timm.optim import list_optimizers

from compress.core.config import Config
from compress.core.errors import InputError, did_you_mean
from compress.training.engine import PRECISIONS
from compress.training.step import StepConfig, StepContext, StepSection, TrainingStep
from compress.training.supervised import SupervisedConfig
from evaluators.tasks import Task

# bnb* and fused* are other packages' kernels, kron* needs a C++ compiler, adahessian second derivatives.
OPTIMIZERS = list_optimizers(exclude_filters=["bnb*", "fused*", "kron*", "adahessian"])


# as Lightning, torch and NumPy call them, and as YAML reads them without quotes
_PRECISIONS: dict[Any, str] = {
    **{lightnings: ours for ours, lightnings in PRECISIONS.items()},
    **dict.fromkeys((32, "fp32", "float32"), "32"),
    **dict.fromkeys((16, "fp16", "float16"), "16"),
    "bfloat16": "bf16",
}


class TrainerConfig(Config):
    """What the Trainer has to know: optimiser, schedule, precision, when to stop, what to keep.

    Sections that train derive from it, and add what their training steps have to know.
    """

    epochs: int = Field(30, ge=0, description="passes over the training data")
    optimizer: str = Field("adamw", description="an optimiser of timm's factory: adamw, sgd (Nesterov), momentum, ...")
    lr: float = Field(1e-3, gt=0, description="learning rate after warm-up")
    weight_decay: float = Field(0.05, ge=0, description="weight decay")
    decay_norm_and_bias: bool = Field(False, description="whether biases and norms decay too")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum, for optimisers that have one")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient; null does not clip")
    schedule: Literal["cosine", "step", "constant"] = Field("cosine", description="how the learning rate falls")
    warmup_epochs: float | None = Field(None, ge=0, description="epochs of linear warm-up; null is 5 % of the epochs")
    warmup_lr: float = Field(1e-6, ge=0, description="learning rate of the first update, if there is warm-up")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    decay_epochs: list[int] = Field([], description="schedule step: epochs after which the learning rate falls")
    decay_rate: float = Field(0.1, gt=0, le=1, description="schedule step: what the learning rate is multiplied by")
    ema: float | None = Field(None, ge=0, lt=1, description="decay of averaged weights, which are then the result")
    precision: Literal["32", "bf16", "16"] = Field("32", description="32, or mixed with bf16 or (GPU only) 16 bits")
    channels_last: bool = Field(False, description="keep images and weights channels last: convolutions may run faster")
    deterministic: bool = Field(
        False, description="on a GPU: the same bits in every run, at a price in speed; the CPU is always exact"
    )
    bn_recalibrate: int = Field(0, ge=0, description="batches that renew batch-norm statistics after the last epoch")
    evaluate_every: int = Field(1, ge=0, description="epochs between evaluations on the test data; 0 is never")
    keep: Literal["last", "best"] = Field(
        "last",
        description="weights of the last epoch, or of the best on the test data (whose figures are then optimistic: "
        "choosing needs data that no result is reported on)",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs without a better main metric on the test data"
    )
    minutes: float | None = Field(None, gt=0, description="stop after so much wall clock, summed over resumes")
    checkpoint_seconds: float = Field(
        60.0, ge=0, description="time between checkpoints, beside one per epoch (where epochs take a second or more)"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _known_elsewhere(cls, value: Any) -> Any:
        return _PRECISIONS.get(value, value) if isinstance(value, int | str) else value

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        name = name if name in OPTIMIZERS else name.lower()
        if name not in OPTIMIZERS:
            near = did_you_mean(name, map(str, OPTIMIZERS))
            raise ValueError(
                f"unknown optimiser {name!r}; allowed: adamw, sgd, momentum and others of timm.optim{near}"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.schedule == "step" and not self.decay_epochs:
            raise ValueError("schedule: step needs decay_epochs, such as [15, 25]")
        if self.warmup_epochs is not None and self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) is more than epochs ({self.epochs})")
        if self.evaluate_every == 0 and (self.keep == "best" or self.patience):
            raise ValueError("keep: best and patience need evaluate_every of at least 1")
        return self

    @property
    def open_ended(self) -> bool:
        """Whether the learning rate of an update is the same for any number of epochs, so that more may be added."""
        return self.schedule != "cosine" and self.warmup_epochs is not None

    def neutral(self) -> dict[str, Any]:
        """Return the settings that decide the result: a run may go on only if these are the same."""
        return self.model_dump(mode="json", exclude={"minutes", "patience", "checkpoint_seconds", "deterministic"})


class LearningConfig(TrainerConfig):
    """How a model is trained on labels; `Task.learning` takes what it says of the loss and the batches."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over all classes")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix; 0 is off, with mixup one of both is drawn per batch")

    def unfit(self, task: Task) -> str | None:
        """Return that nothing can be trained for a task without a loss, or what settings it does not have."""
        if not task.has_loss:
            return f"task {task.name} has no loss to train by; leave the section out, or name what the model is for"
        try:
            task.learning(self)
        except InputError as error:
            return str(error)
        return None


class FitConfig(LearningConfig):
    """How one model is trained by one step; what `fit` takes."""

    has_teacher: ClassVar[bool] = False
    """Whether there may be another model to learn from: the section's stage says when."""

    @property
    def step_config(self) -> StepConfig:
        """What one update computes."""
        raise NotImplementedError

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns from the model before compression."""
        return self.step_config.needs_teacher

    def make_step(self, context: StepContext, seed: int) -> TrainingStep:
        """Return what one update computes; initial values of its own parameters are drawn from `seed`.

        Raises InputError where something is missing that it learns from.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            step = self.step_config.make(context)
        if not isinstance(step, TrainingStep):
            raise InputError(f"step: {self.step_config.name} makes {step!r:.80}; allowed: a TrainingStep")
        return step


class TrainConfig(FitConfig):
    """How one model is trained: by which step."""

    step: StepSection = Field(SupervisedConfig(), description="what one update computes")

    @field_validator("step")
    @classmethod
    def _teachable(cls, step: StepConfig) -> StepConfig:
        if step.needs_teacher and not cls.has_teacher:
            raise ValueError(f"there is no other model yet to learn from; got {step.name}; allowed in finetune")
        return step

    @property
    def step_config(self) -> StepConfig:
        """What one update computes."""
        return self.step
