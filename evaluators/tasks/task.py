"""What a model is for: how it is called, what it is trained to lose little of, and how good it is.

A new task is one new file in this package, or in a package of your own: a `TaskConfig` with its options, entered with
`@tasks.register("name")`, and the `Task` that it binds to the sizes of a data set or a model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from torch import Generator, Tensor, nn

from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.formatting import signed
from compress.core.modes import evaluating
from compress.core.registry import Registry
from compress.core.sections import OneOf
from compress.core.tensors import Inputs, called
from evaluators.datasets.batch import Batch

Shape = tuple[int, ...]
"""Sizes of one input: channels, height, width of an image."""


MOST_DIGITS = 8
"""After the decimal point of a metric; what is smaller counts as 0."""


@dataclass(frozen=True)
class Metric:
    """A figure that tells how good a model is.

    Attributes:
        name: its key in reports, objectives and constraints.
        direction: which way is better.
        label: what lines and narrow tables call it.
        title: what a report calls it.
        unit: after a value, such as "%".
        change_unit: after a difference of two values, such as "points".
        digits: after the decimal point, in tables; lines show one less.
        worst: what a model counts as whose outputs are not finite.
    """

    name: str
    direction: Literal["maximize", "minimize"]
    label: str
    title: str
    unit: str = ""
    change_unit: str = ""
    digits: int = 2
    worst: float = 0.0

    @property
    def heading(self) -> str:
        """The label as columns and charts are headed by: with a capital, unless it is spelled otherwise (mIoU)."""
        return self.label if self.label[1:2].isupper() else self.label[:1].upper() + self.label[1:]

    def better(self, value: float, other: float | None) -> bool:
        """Return whether `value` is better than `other`; anything is better than None."""
        return other is None or (value > other if self.direction == "maximize" else value < other)

    def of(self, metrics: Mapping[str, float | None]) -> float:
        """Return its value among those of one model; the worst where it could not be told."""
        value = metrics.get(self.name)
        return self.worst if value is None else float(value)

    def decimals(self, *values: float) -> int:
        """Return how many digits after the decimal point tell `values` of it.

        `digits`, and of a metric without a unit, whose scale is that of the data, as many as leave the smallest two.
        """
        sizes = [abs(value) for value in values if value and math.isfinite(value)]
        if self.unit or not sizes:
            return self.digits
        return max(self.digits, min(MOST_DIGITS, 1 - math.floor(math.log10(min(sizes)))))

    def show(self, value: float) -> str:
        """Return a value as tables have it, such as `83.47 %`."""
        return f"{value:.{self.decimals(value)}f} {self.unit}".rstrip()

    def show_change(self, before: float, after: float) -> str:
        """Return the difference of two values as tables have it, such as `+0.21 points`."""
        return f"{signed(after - before, self.decimals(before, after))} {self.change_unit}".rstrip()


UNJUDGED = Metric("none", "maximize", "no metric", "No metric")
"""The main metric of a task without metrics: nothing is ever measured under its name."""


class TaskConfig(Config):
    """The section `task` of a recipe. A subclass has a field `name: Literal["..."]`, its options, and `bind`."""

    metrics: ClassVar[tuple[Metric, ...]]
    """All figures that the task can give, the main one first; one of them is called loss."""
    targets: ClassVar[str | None] = None
    """The kind of targets that it learns from, as data sets call them: classes (int64, one number a sample), masks
    (int64, a class for every pixel), boxes (of objects, with their labels) or values (float32); None: any."""
    name: str

    @property
    def main_metric(self) -> Metric:
        """The figure that models are chosen by: the first, unless an option names another; `UNJUDGED` without any."""
        return self.metrics[0] if self.metrics else UNJUDGED

    @abstractmethod
    def bind(self, num_outputs: int, input_size: Shape) -> Task:
        """Return the task for a data set or a model of these sizes; see `Task`.

        Args:
            num_outputs: how many things the targets tell apart, such as classes; 0: not known. The task's own
                `num_outputs` says what that asks of a model.
            input_size: as the task has it.
        """

    def of_model(self, num_outputs: int | None, input_size: Shape) -> Task:
        """Return the task at the sizes of a model; None where it gives something else than models of this task."""
        return replace(self.bind(num_outputs or 0, input_size), num_outputs=num_outputs or 0)

    @abstractmethod
    def outputs_of(self, outputs: Any) -> int | None:
        """Return the width of the head that gave `outputs` for one input; None where they are not of this task.

        0 where outputs of this task do not show it; `width_of` is asked then.
        """

    def width_of(self, model: nn.Module) -> int | None:
        """Return the width of the head of `model`, whose outputs do not show it; None where it does not tell."""
        return None


tasks: Registry[type[TaskConfig]] = Registry("task", home="evaluators.tasks", base=TaskConfig)

TaskSection = Annotated[TaskConfig, OneOf(tasks, "name", default="classification")]
"""The section `task` of a recipe: the config of one of the tasks, told apart by `name`."""


class Meter(ABC):
    """Takes in a model's outputs, batch by batch, and sums them up as metrics."""

    @abstractmethod
    def update(self, outputs: Any, batch: Batch) -> None:
        """Take in what a model gave for `batch`.

        Raises:
            Diverged: the outputs are not finite.
            InputError: they do not fit the targets, or are not of the task.
        """

    @abstractmethod
    def compute(self) -> dict[str, float | None]:
        """Return every metric of the task's config; None for one that says nothing at these sizes."""


@dataclass(frozen=True)
class Task(ABC):
    """A task at the sizes of a data set or a model.

    Attributes:
        num_outputs: width of the head, such as the number of classes; 0 where it is not known (timm's way to say that
            there is none).
        input_size: of one input; channels, height, width of an image. A 0 stands for a size that is not known, () for
            sizes of which nothing is known.
        config: the options that a recipe gave.
    """

    form: ClassVar[str] = "outputs that fit the task"
    """What models give for N inputs, in words."""
    counted: ClassVar[str] = "outputs"
    """What `num_outputs` counts, in words."""
    input_name: ClassVar[str] = "input"
    """What a file calls the input of models that take one tensor."""
    output_name: ClassVar[str] = "output"
    """What a file calls the output of models that give one tensor."""
    gives_tensor: ClassVar[bool] = True
    """Whether `tensor` can be asked for: whether one tensor stands for what models give."""
    fixed_batch: ClassVar[bool] = False
    """Whether files take as many samples at a time as they were written for, since outputs have no batch dimension."""
    scored: ClassVar[Literal["nothing", "samples", "positions"]] = "nothing"
    """What that tensor has a score of every class for, along dimension 1: their softmax are probabilities."""
    has_loss: ClassVar[bool] = True
    """Whether models can be trained for it."""

    num_outputs: int
    input_size: Shape
    config: TaskConfig

    @property
    def in_chans(self) -> int:
        """Channels of an image; 0 where they are not known."""
        return self.input_size[0] if self.input_size else 0

    @property
    def img_size(self) -> int:
        """Pixels a side of an image; 0 where they are not known."""
        return self.input_size[-1] if self.input_size else 0

    @property
    def name(self) -> str:
        """As registered."""
        return self.config.name

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The figures that say something at these sizes, the main one first."""
        return self.config.metrics

    @property
    def main_metric(self) -> Metric:
        """The figure that models are chosen by."""
        return self.config.main_metric

    def resized(self, input_size: Shape) -> Self:
        """Return the task at another size of its inputs."""
        return replace(self, input_size=input_size)

    def arguments(self, images: Tensor) -> Inputs:
        """Return what a model of the task is called with for `images` (N, C, H, W), or other data of one tensor."""
        return images

    # Training.

    def learning(self, options: Any) -> Self:
        """Return the task with what the training settings (a `TrainConfig`) ask of its loss and its batches.

        Raises:
            InputError: they ask for what this task does not have.
        """
        for key in ("label_smoothing", "mixup", "cutmix"):
            if getattr(options, key):
                raise InputError(f"{key} is nothing that task {self.name} has; leave it out")
        return self

    def mixed(self, batch: Batch) -> Batch:
        """Return the batch that is trained on in place of `batch`: the same where the settings mix no samples.

        Draws come from NumPy's and torch's global generators.
        """
        return batch

    def forward(self, model: Callable[..., Any], batch: Batch) -> Any:
        """Return what `model` gives for `batch`. Tasks whose models compute their loss themselves hand on targets."""
        return called(model, batch.inputs)

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Return the loss, a scalar that carries gradients, of what `forward` gave.

        Args:
            outputs: of the model, in training mode or not.
            batch: that it was called with, as `mixed` gave it.
            model: says how much its auxiliary outputs count, if it has any; None: they do not.

        Raises:
            InputError: the outputs are not of this task.
        """

    def losing(self, model: nn.Module) -> AbstractContextManager[None]:
        """Run a block with `model` in the mode in which outputs have a loss, while nothing random happens: evaluation.

        Where only models in training give one, it is `compress.core.modes.training_flow`.
        """
        return evaluating(model)

    def check_trainable(self, model: nn.Module) -> None:  # noqa: B027
        """Raise InputError where `model` has no loss, as far as an input that means nothing tells; it stays as it is.

        Asked before anything is trained. Most tasks compute the loss themselves.
        """

    def drawn_loss(self, outputs: Any, generator: Generator) -> Tensor:
        """Return a summed loss on targets drawn from what the model itself predicts, each with a random sign.

        The square of its gradient estimates the diagonal of the Gauss-Newton matrix without bias. Draws are made by
        `generator` on the CPU.

        Raises:
            InputError: this task has no such loss.
        """
        raise InputError(f"task {self.name} says not how its targets are distributed; choose another criterion")

    def notes_on(self, outputs: Any) -> list[str]:
        """Return what users are to know of a model that gives such outputs: probabilities where logits are wanted."""
        if self.scored == "nothing" or not self.gives_tensor:
            return []
        shares = self.tensor(outputs)
        if shares.shape[1] < 2 or bool((shares < 0).any() | ((shares.sum(1) - 1).abs() >= 1e-4).any()):
            return []
        return [
            "the model gives probabilities, and losses, distillation and calibration take logits (they apply softmax "
            "themselves): leave the softmax at its end out"
        ]

    @abstractmethod
    def tensor(self, outputs: Any) -> Tensor:
        """Return the one tensor that stands for `outputs`: what a student imitates and two models are compared by.

        Raises:
            InputError: the outputs are not of this task, or it is one without `gives_tensor`.
        """

    def check_alike(self, student: Tensor, teacher: Tensor) -> None:
        """Raise InputError where the `tensor`s of two models cannot be compared."""
        if student.shape != teacher.shape:
            raise InputError(f"the teacher gives outputs of {tuple(teacher.shape)}, the model {tuple(student.shape)}")

    # Files.

    def for_file(self, model: nn.Module, post_processing: bool = True) -> nn.Module:
        """Return what is written to a file in the place of `model`: tensors in, tensors out.

        Args:
            model: in evaluation mode.
            post_processing: whether the file also does what the model does with the outputs of its heads.

        Raises:
            InputError: it cannot be told what the heads give.
        """
        return model

    def file_inputs(self, inputs: Inputs) -> Inputs:
        """Return what `for_file` is called with, for what the model is."""
        return inputs

    def substitutes(self, model: nn.Module, expected: Sequence[Mapping[str, Tensor]]) -> list[nn.Module]:
        """Return modules whose files are compared as well, where what the model gives says too little of its file.

        Args:
            model: in evaluation mode.
            expected: what `for_file` of it gives for each of several inputs, by name.
        """
        return []

    def paired(
        self, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return what a file and the model give, so that what belongs together lies at the same place.

        Raises:
            CompressError: much of one has no part that belongs to it in the other.
        """
        return given, expected

    def of_file(self, outputs: Mapping[str, Tensor], samples: int) -> Any:
        """Return what a file gives for a batch as models give it, for the first `samples` of it.

        Args:
            outputs: those that `outputs_in` names.
            samples: in the batch, without those that fill it up.

        Raises:
            InputError: the outputs are not of the task.
        """
        part = {name: value[:samples] for name, value in outputs.items()}
        return next(iter(part.values())) if len(part) == 1 else part

    def outputs_in(self, names: Sequence[str]) -> Sequence[str]:
        """Return which of a file's outputs are what models give: one stands for a tensor, several for a dictionary."""
        return [self.output_name] if self.output_name in names else names

    def tolerance(self, name: str, usual: float) -> float:
        """Return how far an output of a file may be off, as a part of its largest value.

        Args:
            name: of the output.
            usual: what rounding makes of outputs that are not amplified.
        """
        return usual

    def disagreement(self, name: str, output: Tensor, expected: Tensor, within: float) -> str | None:
        """Return in what way an output of a file is another than the model's; None where it is not.

        Args:
            name: of the output.
            output: what the file gives for a batch.
            expected: what the model gives; no value is further off than `within`.
            within: a difference that means nothing.
        """
        return None

    # Evaluation.

    @abstractmethod
    def meter(self) -> Meter:
        """Return what sums up the outputs of one evaluation."""


def check_learnable(loss: Tensor, model: nn.Module) -> None:
    """Raise InputError where no parameter of `model` that is to be trained has a part in its `loss`."""
    if not loss.requires_grad and any(each.requires_grad for each in model.parameters()):
        raise InputError(
            "model: its loss in training has no gradient, so nothing would be learned; what it returns must not be "
            "detached, or computed under torch.no_grad"
        )
