"""Losses that let a student learn from teachers: one file per method, its config class next to its code.

A new loss is one new file in this package: a `LossConfig` subclass with a `loss: Literal["name"]` field, entered with
`@losses.register("name")`. A loss of outputs alone has a method `term`; one that looks at layers, or that trains
modules of its own, has `make`. A third party's package does the same in a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import InputError, did_you_mean
from compress.core.modes import modes_kept
from compress.core.registry import Registry
from compress.core.sections import OneOf, one_or_many
from compress.distill.layers import Seen, Watched
from evaluators.datasets.batch import Batch
from evaluators.tasks import Task

Compared = Literal["tensors", "scores", "scores of samples", "layers"]
"""What a loss looks at: the task's tensor of outputs; scores of classes in it, (N, classes, ...); those of whole
samples, (N, classes); or layers of the models."""

_SAID: Mapping[str, str] = {
    "tensors": "tensors of outputs",
    "scores": "probabilities of classes",
    "scores of samples": "probabilities of classes for whole images",
    "layers": "layers",
}


def gives(task: Task, compared: Compared) -> bool:
    """Return whether models for `task` give what a loss compares."""
    if compared == "scores":
        return task.scored != "nothing"
    if compared == "layers":
        return task.has_loss  # whatever the outputs are
    return task.scored == "samples" if compared == "scores of samples" else task.gives_tensor


@dataclass(frozen=True)
class Guide:
    """A teacher as losses know it.

    Attributes:
        name: as the recipe calls it.
        model: in evaluation mode; None where only its outputs are at hand, without layers to look at.
        weight: its share beside other teachers.
    """

    name: str
    model: nn.Module | None
    weight: float = 1.0


@dataclass(frozen=True)
class Sides:
    """Who teaches whom: what a loss is made from.

    Attributes:
        student: the model that learns.
        guides: the teachers, at least one.
        task: of both.
        sample: gives two samples, on the device of the models.
        updates_per_epoch: how many updates an epoch has.
        batches: gives the training data, batch by batch, on the device of the models.
    """

    student: nn.Module
    guides: Sequence[Guide]
    task: Task
    sample: Callable[[], Batch]
    updates_per_epoch: int = 1
    batches: Callable[[], Iterable[Batch]] = tuple

    @property
    def shares(self) -> dict[str, float]:
        """The weights of the teachers by name, in parts of 1."""
        total = sum(each.weight for each in self.guides)
        return {each.name: each.weight / total for each in self.guides}

    def guide(self, name: str | None, key: str) -> Guide:
        """Return the teacher called `name` (None: the first), which has to have layers.

        Raises:
            InputError: there is none, or only its outputs are at hand; `key` is the recipe's, for the message.
        """
        names = [each.name for each in self.guides]
        if name is not None and name not in names:
            raise InputError(f"{key}: unknown teacher {name!r}; allowed: {', '.join(names)}{did_you_mean(name, names)}")
        found = self.guides[0 if name is None else names.index(name)]
        if found.model is None:
            raise InputError(f"{key}: teacher {found.name} has a cache of outputs, and no layers to look at")
        return found

    @cached_property
    def _batch(self) -> Batch:
        return self.sample()

    def samples(self, count: int) -> Iterator[Batch]:
        """Yield training data of `count` samples, or of all that there are."""
        for batch in self.batches():
            yield batch.part(0, count)
            count -= len(batch)
            if count <= 0:
                return

    @torch.no_grad()
    def look(self, model: nn.Module, layers: Sequence[str], batch: Batch | None = None) -> Seen:
        """Return what a model gives for a batch, in evaluation mode, and what goes through its layers then.

        This is where a loss finds out how wide the layers are: without a batch, it is the two samples.
        """
        batch = (batch or self._batch).mapped(torch.clone)
        with modes_kept(model):
            model.eval()
            return Watched(model, layers, self.task).see(lambda: self.task.forward(model, batch))


class DistillLoss(nn.Module):
    """One term of the training loss, with the modules (projectors, discriminators) that train for it.

    They train beside the student, are in its checkpoints, and are no part of the result.

    Attributes:
        student_layers: names of the student's layers that it wants to see.
        teacher_layers: of the teachers', by the name of the teacher.
        parts: what the log is to tell of the last call beside the term itself, scalars by name.
    """

    student_layers: Sequence[str] = ()
    teacher_layers: Mapping[str, Sequence[str]] = {}
    parts: Mapping[str, Tensor] = {}

    def active(self, update: int) -> bool:
        """Return whether the term joins the loss of update number `update`; where none does, no teacher is asked."""
        return True

    def forward(self, student: Seen, teachers: Mapping[str, Seen], batch: Batch, update: int) -> Tensor:
        """Return the term, a scalar.

        Args:
            student: what the student gave for a batch, with gradients.
            teachers: what each teacher gave for the same, without.
            batch: what they were given, mixed where the recipe mixes; a model may have changed its inputs.
            update: number of the update, from 0.

        Raises:
            InputError: what the models gave cannot be compared.
        """
        raise NotImplementedError


class LossConfig(Config):
    """The base of every distillation loss: its settings, and what it adds to the training loss."""

    compares: ClassVar[Compared] = "tensors"
    """What of student and teachers it looks at."""
    loss: str

    def unfit(self, task: Task) -> str | None:
        """Return why it cannot be used with `task`: models for that do not give what it compares."""
        if gives(task, self.compares):
            return None
        allowed = [name for name in losses if gives(task, losses.get(name).compares)]
        named = f"; allowed: {', '.join(allowed)}" if allowed else ""
        return f"{self.loss} compares {_SAID[self.compares]}, and task {task.name} gives none; got {self.loss}{named}"

    @property
    def label_share(self) -> float:
        """The weight that is left to the loss on the labels; of several losses, the least share counts."""
        return 1.0

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return what a loss of outputs alone adds, a scalar; several teachers are averaged by their weights.

        Args:
            student: the task's tensor of outputs, such as logits (N, classes), with gradients.
            teacher: that of the same inputs, without gradients.
        """
        raise NotImplementedError

    def make(self, sides: Sides) -> DistillLoss:
        """Return the term of the training loss; initial values may be drawn from PyTorch's generator, which is seeded.

        Raises:
            InputError: a layer, a teacher or something else that it needs is not there.
        """
        return OutputLoss(self, sides)


class OutputLoss(DistillLoss):
    """A term that knows nothing but the outputs: the mean over the teachers, by their weights."""

    def __init__(self, config: LossConfig, sides: Sides) -> None:
        super().__init__()
        self.config, self.task, self.shares = config, sides.task, sides.shares

    def forward(self, student: Seen, teachers: Mapping[str, Seen], batch: Batch, update: int) -> Tensor:
        """Return the mean of `term` over the teachers; InputError where their outputs are not like the student's."""
        guidance = guidances(self.task, student, teachers)
        terms = {name: self.config.term(student.tensor, each) for name, each in guidance.items()}
        return averaged(terms, self.shares)


def guidances(task: Task, student: Seen, teachers: Mapping[str, Seen]) -> dict[str, Tensor]:
    """Return the teachers' tensors of outputs by name, in the student's type.

    Raises:
        InputError: one is not like the student's, such as logits of other classes; names the teacher.
    """
    for name, seen in teachers.items():
        try:
            task.check_alike(student.tensor, seen.tensor)
        except InputError as error:
            raise InputError(*(f"teachers.{name}: {problem}" for problem in error.problems)) from error
    return {name: seen.tensor.to(student.tensor.dtype) for name, seen in teachers.items()}


def averaged(values: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
    """Return the mean of `values` by the shares of the same names."""
    parts = [value if shares[name] == 1 else shares[name] * value for name, value in values.items()]
    return sum(parts[1:], parts[0])


losses: Registry[type[LossConfig]] = Registry("loss", home="compress.distill.losses", base=LossConfig)

DistillConfig = Annotated[LossConfig, OneOf(losses, "loss", default="kd")]
"""The config of one of the losses, told apart by `loss`."""


def _of_outputs(loss: LossConfig) -> LossConfig:
    if type(loss).term is LossConfig.term or type(loss).make is not LossConfig.make:
        allowed = [name for name in losses if losses.get(name).make is LossConfig.make]
        raise ValueError(f"{loss.loss} takes more than outputs; allowed here: {', '.join(allowed)}")
    return loss


OutputDistillConfig = Annotated[DistillConfig, AfterValidator(_of_outputs)]
"""The config of a loss that knows nothing but outputs."""

if TYPE_CHECKING:
    LossSection = LossConfig | list[LossConfig]
else:
    LossSection = one_or_many(DistillConfig)
"""A key `distill` or `loss` of a recipe: one loss, or a list of those that are added up."""
