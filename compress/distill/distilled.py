"""Learning from teachers as well as from the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.batch_norm import enough_values
from compress.core.errors import CompressError, InputError
from compress.distill.layers import Seen, Watched
from compress.distill.losses import DistillLoss, Guide, LossConfig, LossSection, Sides
from compress.distill.losses.kd import KdConfig
from compress.distill.means import Means
from compress.distill.teacher_cache import CachedTeacher, each_cached
from compress.distill.teachers import DENSE, TeacherConfig, Teachers, needs_dense, opened
from compress.training.engine import Engine
from compress.training.step import StepConfig, StepContext, Teacher, steps
from compress.training.supervised import Supervised
from compress.training.trainer import training_split
from evaluators.datasets.batch import Batch
from evaluators.datasets.holdout import unaugmented

JUDGED = 256
"""Training samples by which teachers are judged."""


class Distilled(Supervised):
    """Supervised training whose loss is joined by what teachers give for the same inputs.

    The loss is the sum of the losses' terms and of the loss on the labels, times the least share that one of the
    losses leaves it; where that is 0, no label is read.
    """

    def __init__(self, context: StepContext, config: DistilledConfig) -> None:
        """Open the teachers; raises InputError where one is missing or does not fit the data."""
        super().__init__(context)
        self.configs: Sequence[LossConfig] = config.loss if isinstance(config.loss, list) else [config.loss]
        self.several = isinstance(config.loss, list)
        self.label_share = min(each.label_share for each in self.configs)
        self.context = context
        self.cached = {name: CachedTeacher(name, each, context) for name, each in each_cached(config.teachers)}
        teachers = config.teachers or {DENSE: TeacherConfig()}
        self.guides = [self._guide(name, each) for name, each in teachers.items()]
        self.untrained = {name for name, each in teachers.items() if each.untrained}
        self.teachers = {each.name: Teacher(each.model) for each in self.guides if each.model is not None}
        self.terms = nn.ModuleList()
        self.means = Means()
        self._seed = int(torch.randint(2**31, ()))

    def _guide(self, name: str, config: TeacherConfig) -> Guide:
        if name in self.cached:
            return Guide(name, None, config.weight)
        model = self.context.teacher if config.model is None else opened(name, config, self.context.data)
        if model is None:
            raise InputError("step distilled needs a teacher, the model before compression, and there is none")
        return Guide(name, model, config.weight)

    def prepare(self, model: nn.Module, engine: Engine) -> None:
        """Make the terms of the loss for this student, and move them and the teachers to its device.

        Raises:
            InputError: a layer that a loss looks at is not there.
        """
        for teacher in self.teachers.values():
            teacher.prepare(engine)
        loader = training_split(self.context.data)

        def batches() -> Iterator[Batch]:
            return map(engine.moved, loader.epoch(0))

        self._sides = Sides(model, self.guides, self.task, lambda: next(batches()).part(0, 2), len(loader), batches)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            self.terms = nn.ModuleList()
            for number, config in enumerate(self.configs):
                with self._blamed(number):
                    self.terms.append(config.make(self._sides))
        self._student = Watched(model, [name for term in self._terms() for name in term.student_layers], self.task)
        self._watched = {
            name: Watched(teacher.model, self._layers_of(name), self.task) for name, teacher in self.teachers.items()
        }
        super().prepare(model, engine)

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the loss on what the teachers give, and on the labels as far as the losses leave them a share.

        Raises:
            InputError: what a teacher and the model give cannot be compared, or what supervised training raises.
        """
        index, batch = batch.index, self.task.mixed(batch)
        active = [each for each in enumerate(self._terms()) if each[1].active(update)]
        named = {self._names()[number]: term for number, term in active}
        taught = self._taught(batch, index, update) if named else {}  # first: the model may change the inputs
        with enough_values():
            student = self._student.see(lambda: self.task.forward(model, batch))
        terms = {}
        for (number, term), name in zip(active, named, strict=True):
            with self._blamed(number):
                terms[name] = _one_number(term(student, taught, batch, update))
        if self.label_share:
            terms["label"] = self.label_share * self.task.loss(student.outputs, batch, model)
        parts = {f"{name}_{part}": value for name, term in named.items() for part, value in term.parts.items()}
        self.means.add({**{f"{name}_loss": value for name, value in terms.items()}, **parts})
        return torch.stack(list(terms.values())).sum()

    @contextmanager
    def _blamed(self, number: int) -> Iterator[None]:
        """Put the key of a loss before what is wrong with it: `loss`, or `loss.1` where there is a list."""
        name, key = self.configs[number].loss, f"loss.{number}" if self.several else "loss"
        try:
            yield
        except InputError as error:
            raise InputError(*(_at(key, name, each) for each in error.problems)) from error

    def remarks(self, model: nn.Module) -> list[str]:
        """Return how good the teachers are that give what the model gives, on some of the training data.

        One that knows no more than a guess has its classes in another order, or gets other inputs than it learnt from.
        """
        if not self.task.metrics or not self.task.gives_tensor:
            return []
        ours, main, said = self._sides.look(model, []).tensor, self.task.main_metric, []
        for name, teacher in self.teachers.items():
            if name in self.untrained:
                continue
            try:
                self.task.check_alike(ours, self._sides.look(teacher.model, []).tensor)
            except InputError:
                continue  # a guide of other classes, whose layers alone are looked at
            worth, count = self._worth(name)
            said.append(f"teacher {name}: {main.label} {main.show(worth)} on {count} training samples")
        return said

    def _worth(self, name: str) -> tuple[float, int]:
        """Return the main metric of a teacher on training data without augmentation, and on how many samples.

        Raises:
            InputError: what it gives cannot be judged.
        """
        meter, count = self.task.meter(), 0
        try:
            for given in unaugmented(training_split(self.context.data)).epoch(0):
                batch = self.engine.moved(given).part(0, JUDGED - count)
                seen = self._sides.look(self.teachers[name].model, [], batch)  # in float32, whatever trains
                meter.update(seen.outputs, batch)
                count += len(batch)
                if count >= JUDGED:
                    break
            return self.task.main_metric.of(meter.compute()), count
        except CompressError as error:
            raise InputError(f"teachers.{name}: {error}") from error

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Forget the terms of the epoch before."""
        self.means.clear()

    def figures(self) -> dict[str, float]:
        """Return the mean of every term as it joins the loss, such as kd_loss and label_loss, and of its parts."""
        return self.means.read()

    def _taught(self, batch: Batch, index: Tensor | None, update: int) -> dict[str, Seen]:
        """Return what each teacher gives for the batch."""
        kept = {name: each.outputs(batch, index, update) for name, each in self.cached.items()}
        return {name: Seen(outputs, outputs) for name, outputs in kept.items()} | {
            name: self._watched[name].see(partial(self.task.forward, teacher, batch))
            for name, teacher in self.teachers.items()
        }

    def _layers_of(self, teacher: str) -> list[str]:
        return [name for term in self._terms() for name in term.teacher_layers.get(teacher, ())]

    def _names(self) -> list[str]:
        """Return what the log calls the terms: as the recipe does, with a number where one loss is there twice."""
        losses = [each.loss for each in self.configs]
        return [
            each if losses.count(each) == 1 else f"{each}{losses[: place + 1].count(each)}"
            for place, each in enumerate(losses)
        ]

    def _terms(self) -> list[DistillLoss]:
        return cast(list[DistillLoss], list(self.terms))


def _one_number(term: object) -> Tensor:
    """Return the value of a loss; InputError where it is not one number, or the model cannot learn from it."""
    if not isinstance(term, Tensor) or term.numel() != 1:
        got = f"a tensor {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
        raise InputError(f"it gives {got}; allowed: a tensor of one number")
    if torch.is_grad_enabled() and not term.requires_grad:
        raise InputError("it has no gradient, so nothing would be learned from it")
    return term.reshape(())


def _at(key: str, name: str, problem: str) -> str:
    """Return what is wrong with a loss at the recipe's `key`; a problem may name one of the loss' own keys."""
    if problem.startswith("teachers."):
        return problem
    return f"{key}.{problem.removeprefix(f'{name}.')}" if problem.startswith(f"{name}.") else f"{key}: {problem}"


@steps.register("distilled")
class DistilledConfig(StepConfig):
    """Learn from teachers as well as from the labels."""

    name: Literal["distilled"] = Field("distilled", description="learn from teachers and the labels")
    loss: LossSection = Field(KdConfig(), description="how what teachers give joins the loss; a list is added up")
    teachers: Teachers = Field({}, description="teachers by name; none: the model before compression")

    @property
    def needs_teacher(self) -> bool:
        """Whether the model before compression is one of the teachers."""
        return needs_dense(self.teachers)

    def make(self, context: StepContext) -> Distilled:
        """Return the step; InputError where there is no teacher, or one does not fit."""
        return Distilled(context, self)
