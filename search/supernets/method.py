"""What a method of training a supernet is, and the section `supernet` of a recipe.

A method is one new file in this package, or in one of your own: a `SupernetMethod` with its options, entered with
`@methods.register("name")`, and the `SupernetStep` that says what one update of the shared weights computes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from compress.core.batch_norm import enough_values
from compress.core.config import Config
from compress.core.registry import Registry
from compress.core.sections import OneOf
from compress.training.config import LearningConfig
from compress.training.step import TrainingStep
from compress.training.trainer import Trainer
from evaluators.candidates.networks import names_for
from evaluators.datasets import Data
from evaluators.datasets.batch import Batch
from evaluators.tasks import Task, TaskConfig
from search.space import SpaceSection
from search.supernets.rating import AccuracyRater, Rater
from spaces.architecture import Architecture
from spaces.space import Space
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from search.supernets.trained import TrainedSupernet


@dataclass(frozen=True)
class SupernetContext:
    """What a method has at hand.

    Attributes:
        config: the section `supernet`.
        data: `train` is what the shared weights learn from, `test` the training samples held out from that. Nothing
            learns weights from the held-out ones; a method may choose architectures by them.
        device: such as "cpu" or "cuda:0".
        seed: the recipe's.
        directory: the stage's own, for checkpoints.
        resume: whether the training goes on where another process was stopped.
        log: takes an event for log.jsonl.
    """

    config: SupernetConfig
    data: Data
    device: str
    seed: int
    directory: Path
    resume: bool = False
    log: Callable[[dict[str, Any]], None] | None = None


class SupernetStep(TrainingStep):
    """A step that trains the weights of a supernet, which is the `model` of its `loss`.

    The model that `loss` gets runs at the run's precision; `activate`, `mix` and the other attributes of the supernet
    are called on it as well.
    """

    def __init__(self, context: SupernetContext) -> None:
        """Raises InputError where the settings ask for what the task does not have."""
        super().__init__()
        self.task: Task = context.data.task.learning(context.config)

    def loss_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the task's loss of what is active, on labels; it may change the inputs of `batch`."""
        return self.learnt(model, batch)[1]

    def learnt(self, model: nn.Module, batch: Batch) -> tuple[Any, Tensor]:
        """Return what the active architecture gives for `batch`, and its loss."""
        with enough_values():
            outputs = self.task.forward(model, batch)
        return outputs, self.task.loss(outputs, batch, model)

    def found(self, supernet: Supernet) -> Architecture | None:
        """Return the architecture that the training itself has found, if the method finds one."""
        return None

    def details(self) -> dict[str, Any]:
        """Return what the report tells of the training, as JSON values."""
        return {}

    def notes(self) -> list[str]:
        """Return sentences that the report shows."""
        return []


@dataclass(frozen=True)
class Training:
    """What came of a training.

    Attributes:
        found: the architecture that the training itself has found, if the method finds one.
        ratings: what a rater looks up instead of running networks, as JSON values.
        details: what the report tells, as JSON values.
        notes: sentences that the report shows.
    """

    found: Architecture | None = None
    ratings: Mapping[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class SupernetMethod(Config):
    """Options of a method; a subclass has a field `name: Literal["..."]`, its options, and `step`."""

    finds: ClassVar[bool] = False
    """Whether the training itself ends in an architecture, so that no search has to follow."""
    hangs_on_epochs: ClassVar[bool] = False
    """Whether an update goes by how much of the training is over, so that a training cannot be made longer."""
    name: str

    def make(self, space: Space, task: Task) -> Supernet:
        """Return the supernet with initial weights, drawn from PyTorch's generator, which is seeded.

        Raises InputError where the space has not what the method needs.
        """
        return space.supernet(task)

    @abstractmethod
    def step(self, supernet: Supernet, context: SupernetContext) -> SupernetStep:
        """Return what one update computes; raises InputError where something is missing that it needs."""

    def train(self, supernet: Supernet, context: SupernetContext) -> Training:
        """Train `supernet` in place, or go on where a killed process was; see `Trainer.run` for what is raised."""
        with seeded(context.seed):
            step = self.step(supernet, context)
        trainer = Trainer(
            supernet,
            step,
            replace(context.data, test=None),  # one architecture's accuracy, whichever is active, tells nothing
            context.config,
            device=context.device,
            seed=context.seed,
            checkpoint_dir=context.directory / "checkpoint",
            log=context.log,
            label=f"supernet ({self.name})",
        )
        result = trainer.run(context.resume)
        told = {"epochs_run": result.epochs_run, "seconds_training": round(result.seconds, 3), **step.details()}
        return Training(step.found(supernet), details=told, notes=step.notes())

    def metrics_for(self, task: TaskConfig) -> Collection[str] | None:
        """Return what networks for `task` are rated by, and their costs; None where that is not known before."""
        return names_for(task) if type(self).rater is SupernetMethod.rater else None

    def rater(self, trained: TrainedSupernet, supernet: Supernet, device: str, recalibrate: int) -> Rater:
        """Return what rates architectures of a trained supernet; by accuracy, unless a subclass knows better."""
        return AccuracyRater(supernet, device, recalibrate)


methods: Registry[type[SupernetMethod]] = Registry("supernet method", home="search.supernets", base=SupernetMethod)

MethodSection = Annotated[SupernetMethod, OneOf(methods, "name")]
"""The section `supernet.method` of a recipe: the config of one of the methods, told apart by `name`."""


class SupernetConfig(LearningConfig):
    """Train the shared weights of a space once; searches, rankings and cut-outs then start from them."""

    space: SpaceSection | None = Field(None, description="the space; null: the one of the section search")
    method: MethodSection = Field(description="how the weights are trained: a name of `compress ls methods`")
    holdout: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of the training images that weights never learn from: architectures are judged on it",
    )

    found_options: dict[str, Any] = Field(
        {}, description="options of the space, such as more cells, with which later sections build what is found"
    )

    @field_validator("method", mode="before")
    @classmethod
    def _by_name(cls, method: Any) -> Any:
        return {"name": method} if isinstance(method, str) and method in methods else method

    @property
    def open_ended(self) -> bool:
        """Whether an update is the same for any number of epochs, so that more may be added."""
        return super().open_ended and not self.method.hangs_on_epochs

    @model_validator(mode="after")
    def _judged_elsewhere(self) -> Self:
        if self.keep == "best" or self.patience:
            raise ValueError("keep: best and patience need the accuracy of one network, and a supernet is many")
        if self.bn_recalibrate:
            raise ValueError("bn_recalibrate is nothing for a supernet: statistics are renewed for each architecture")
        return self


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from PyTorch's generator as `seed` says inside the block, and as before after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
