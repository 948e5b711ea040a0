"""What one update computes: the interface between the Trainer and a method of training.

A method is one file: a `TrainingStep` and, next to it, its `StepConfig`, entered with `@steps.register("name")`.
Supervised training is `compress.training.supervised`, learning from a teacher `compress.distill.distilled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.core.config import Config
from compress.core.registry import Registry
from compress.core.sections import OneOf
from compress.training.engine import Engine
from evaluators.datasets.batch import each_tensor

if TYPE_CHECKING:
    from compress.training.config import LearningConfig
    from evaluators.datasets import Batch, Data


class TrainingStep(nn.Module):
    """What one update computes, with the modules and the state that this takes beside the model's.

    The Trainer owns the optimiser, its schedule, precision, masks, averaging, clipping and checkpoints, and makes every
    update from the step's `loss`. Parameters, modules and buffers that a step assigns to itself (projectors,
    discriminators, architecture weights, running means) move to the device, train beside the model, and are in every
    checkpoint, so that a resumed run goes on bit for bit; they are no part of the result. State that is no tensor goes
    through PyTorch's `get_extra_state` and `set_extra_state`. A step never assigns itself the model that it trains, and
    holds models that do not train as a `Teacher`.

    Everything that is random in update n may be drawn from PyTorch's (or numpy's) global generator: it is seeded anew
    before each update.

    Attributes:
        engine: where passes run; set by `prepare`.
        optimizer: the run's, of the model's weights, to be read alone; there before the first update.
    """

    engine: Engine
    optimizer: Optimizer

    def prepare(self, model: nn.Module, engine: Engine) -> None:
        """Get ready for updates of `model`, which is on its device; called once, before any state is restored."""
        self.engine = engine
        engine.placed(self)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return groups that train in the run's optimiser, with its learning rate unless a group has its own `lr`.

        By default these are all own parameters that none of `optimizers` has; biases and norms do not decay.
        """
        elsewhere = {
            id(parameter)
            for optimizer in self.optimizers().values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        groups = param_groups_weight_decay(self, weight_decay)
        kept = [{**group, "params": [p for p in group["params"] if id(p) not in elsewhere]} for group in groups]
        return [group for group in kept if group["params"]]

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Return own optimisers by name, for parameters of the step that train in their own way.

        Their state is in the checkpoints. `loss` clears their gradients and lets them step, by `engine.apply`.
        """
        return {}

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the loss of update number `update` (from 0), a scalar.

        The Trainer runs it backward and lets the optimiser step. A step that takes several passes (one per
        sub-network, say) runs each backward itself by `engine.backward`, which adds up the gradients, and returns the
        loss detached.

        Args:
            model: the model in training mode; its forward pass runs at the run's precision and gives float32.
            batch: on the model's device; the step may change it.
            update: counted over all epochs; also what a second stream of data is read at, so that it resumes.
        """
        raise NotImplementedError

    def after_update(self, model: nn.Module, update: int) -> None:
        """Do what is due once the optimiser has made its step, before masks and the run's average see the weights."""

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Do what is due before the first update of `epoch` (from 0)."""

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        """Do what is due after the last update of `epoch`, before the model is evaluated and saved."""

    def remarks(self, model: nn.Module) -> list[str]:
        """Return sentences for standard error and the report; asked for once in a process, before its first update."""
        return []

    def finished(self) -> bool:
        """Return whether the epoch that has just ended is the last one, whatever the number of epochs says."""
        return False

    def figures(self) -> dict[str, float]:
        """Return what the log tells of the epoch that has just ended, by name, beside loss and learning rate."""
        return {}


class Teacher:
    """A model that is asked and never trained: in evaluation mode, without gradients, in no checkpoint."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def prepare(self, engine: Engine) -> None:
        """Move the model to where the student learns, in evaluation mode; it stays like that."""
        self.engine = engine
        engine.placed(self.model).eval()

    @torch.no_grad()
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Return what the model gives for `inputs` at the run's precision; it gets copies, which it may change."""
        if self.model.training:  # someone else has trained it since
            self.model.eval()
        with self.engine.autocast():
            return self.model(*each_tensor(inputs, torch.clone), **each_tensor(named, torch.clone))


@dataclass(frozen=True)
class StepContext:
    """What a step is made from.

    Attributes:
        config: the settings of the training, such as label smoothing.
        data: what is learnt from; its `task` says what the loss is.
        teacher: the model before it was compressed, where there is one.
    """

    config: LearningConfig
    data: Data
    teacher: nn.Module | None = None


class StepConfig(Config):
    """Options of a step; a subclass has a field `name: Literal["..."]`, fields for its options, and `make`."""

    name: str

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns from the model before compression."""
        return False

    def make(self, context: StepContext) -> TrainingStep:
        """Return the step; initial values of its parameters may be drawn from PyTorch's generator, which is seeded.

        Raises InputError where something is missing that it learns from.
        """
        raise NotImplementedError


steps: Registry[type[StepConfig]] = Registry("training step", ("compress.training", "compress.distill"), StepConfig)

StepSection = Annotated[StepConfig, OneOf(steps, "name", default="supervised")]
"""A section `step` of a recipe: the config of one of the steps, told apart by `name`."""
