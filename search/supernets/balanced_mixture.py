"""Balanced mixture of supernets: architectures that disturb each other train different weights.

Javan, Toews, Pedersoli, "Balanced Mixture of SuperNets for Learning the CNN Pooling Architecture", AutoML 2023. With
one model it is single path one-shot.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.batch_norm import by_batch, enough_values
from compress.core.errors import Diverged, InputError
from compress.training.replicas import replicas
from evaluators.candidates.evaluator import Metrics
from evaluators.candidates.networks import names_for
from evaluators.datasets import Data
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import placed, seed_of
from evaluators.tasks import Task, TaskConfig
from search.supernets.held_out import HeldOut
from search.supernets.method import SupernetContext, SupernetMethod, SupernetStep, Training, methods
from search.supernets.mixture import MixtureSupernet
from search.supernets.rating import AccuracyRater, Rater
from spaces.architecture import Architecture
from spaces.space import Space
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from search.supernets.trained import TrainedSupernet

MOST = 10_000
"""Architectures of a space, as each has a row of scores that only its own updates fill."""

Choice = Literal["mean", "best", "most_probable"]


class BalancedMixtureStep(SupernetStep):
    """One architecture per update, each as likely, by a model drawn for it; a held-out batch tells how that went."""

    def __init__(self, supernet: MixtureSupernet, config: BalancedMixture, context: SupernetContext) -> None:
        """Raises InputError where the task has no accuracy, or the settings ask for what it does not have."""
        super().__init__(context)
        self.metric = self.task.main_metric
        if self.metric.direction != "maximize":
            raise InputError(
                f"balanced_mixture goes by an accuracy, and task {self.task.name} by {self.metric.name}, which is "
                "minimised; allowed: tasks whose main metric is maximised"
            )
        assert context.data.test is not None
        self.config, self.space, self.seed, self.epochs = config, supernet.space, context.seed, context.config.epochs
        self.held_out = HeldOut(replace(context.data, test=placed(context.data.test, context.device)))
        self.told: dict[str, float] = {}

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Raise the temperature, and balance the models anew."""
        mixture = cast(MixtureSupernet, model)
        mixture.temperature.fill_(1 + (self.config.temperature - 1) * epoch / self.epochs)
        mixture.balance()

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the loss of the architecture that is drawn for this update, by the model that is drawn for it."""
        mixture = cast(MixtureSupernet, model)  # its methods; as a module it is the run's, with the run's precision
        mixture.use(*self.draw(mixture, update))
        return self.loss_of(model, self.task.mixed(batch))

    def draw(self, mixture: MixtureSupernet, update: int) -> tuple[Architecture, int]:
        """Return what `update` trains, and the number of the model: by the seed, and by scores and shares of now."""
        generator = random.Random(seed_of(self.seed, update))
        arch = self.space.sample(generator)
        if self.config.rebalance == "batch":
            mixture.balance()
        probable = mixture.probabilities(arch)
        return arch, generator.choices(range(len(probable)), probable)[0]

    def after_update(self, model: nn.Module, update: int) -> None:
        """Score what has just been trained on the next held-out batch."""
        mixture = cast(MixtureSupernet, model)
        accuracy = self._accuracy(mixture, self.held_out.batch(update))
        mixture.learn(replicas().mean({"accuracy": accuracy})["accuracy"], self.config.decay)

    def _accuracy(self, mixture: MixtureSupernet, batch: Batch) -> float:
        """Return the main metric of what is active, 0 to 1; 0 for outputs that are not finite."""
        meter, batch = self.task.meter(), self.engine.moved(batch)
        with torch.no_grad(), enough_values(), by_batch(mixture.running_supernet), self.engine.autocast():
            outputs = self.task.forward(mixture, batch)
        try:
            meter.update(outputs, batch)
        except Diverged:
            return 0.0
        found = meter.compute()[self.metric.name]
        assert found is not None
        score = found / 100 if self.metric.unit == "%" else found
        if not 0 <= score <= 1:
            raise InputError(
                f"balanced_mixture goes by an accuracy; got {self.metric.name} {found:g} of task {self.task.name}; "
                "allowed: 0 to 1, or 0 to 100 in a metric whose unit is %"
            )
        return score

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        """Note how the models were balanced."""
        mixture = cast(MixtureSupernet, model)
        trained = mixture.visits.sum(0)
        self.told = {
            "temperature": float(mixture.temperature),
            "divisions": int(mixture.divisions),
            "busiest_model": float(trained.max() / trained.sum()),
        }

    def figures(self) -> dict[str, float]:
        """Return temperature, divisions until the models were balanced, the busiest model's share of all updates."""
        return self.told


class MixtureRater(AccuracyRater):
    """The task's metrics, and the main one of every model by itself."""

    def __init__(self, mixture: MixtureSupernet, device: str, batches: int, choice: Choice) -> None:
        super().__init__(mixture, device, batches)
        self.mixture, self.choice = mixture, choice

    def metrics(self, data: Data) -> tuple[str, ...]:
        """Return the task's, and such as top1_model1 unless only one model is asked."""
        models = 0 if self.choice == "most_probable" else len(self.mixture.supernets)
        main = data.task.main_metric.name
        return (*super().metrics(data), *(f"{main}_model{number}" for number in range(1, models + 1)))

    def rate(self, arch: Architecture, data: Data) -> Metrics:
        """Return the mean over the models, or the metrics of one of them, and what each gave."""
        each = self.by_member(self._asked(arch), arch, data)
        if self.choice == "most_probable":
            return each[0]
        main = data.task.main_metric.name
        table = {f"{main}_model{number}": found[main] for number, found in enumerate(each, start=1)}
        if self.choice == "best":
            return each[self._best(each, data)] | table
        return {name: sum(found[name] for found in each) / len(each) for name in each[0]} | table

    def holder(self, arch: Architecture, data: Data, supernet: Supernet) -> Supernet:
        """Return the best of the models that are asked for `arch`."""
        asked = self._asked(arch)
        return asked[self._best(self.by_member(asked, arch, data), data)] if len(asked) > 1 else asked[0]

    def _asked(self, arch: Architecture) -> Sequence[Supernet]:
        members = self.mixture.members(arch)
        return [members[self.mixture.home(arch)]] if self.choice == "most_probable" else members

    def _best(self, each: list[Metrics], data: Data) -> int:
        main, best = data.task.main_metric, 0
        for number, found in enumerate(each):
            best = number if main.better(found[main.name], each[best][main.name]) else best
        return best


@methods.register("balanced_mixture")
class BalancedMixture(SupernetMethod):
    """Train several supernets at once, each architecture mostly in the one that does best with it."""

    hangs_on_epochs: ClassVar[bool] = True
    name: Literal["balanced_mixture"] = Field("balanced_mixture", description="several supernets, equally busy")
    models: int = Field(4, ge=1, description="supernets; 1 is single_path")
    temperature: float = Field(
        100.0,
        ge=1,
        le=10_000,
        description="what accuracies (0 to 1) are multiplied by towards the end, from 1 at the start",
    )
    decay: float = Field(0.9, ge=0, lt=1, description="of the moving averages of held-out accuracies")
    rebalance: Literal["epoch", "batch"] = Field(
        "epoch", description="when the models are balanced: at the start of each epoch, as published, or every update"
    )
    choice: Choice = Field(
        "mean", description="what an architecture is worth: the models' mean, the best, or the most probable model's"
    )

    def unfit(self, task: Task) -> str | None:
        """Return that the task is judged by no accuracy."""
        main = task.main_metric
        if main.direction == "maximize" and task.metrics:
            return None
        by = f"goes by {main.name}, which is minimised" if task.metrics else "has no metric"
        return (
            f"balanced_mixture goes by an accuracy, and task {task.name} {by}; allowed: tasks whose main metric is "
            "maximised"
        )

    def make(self, space: Space, task: Task) -> MixtureSupernet:
        """Return the supernets with initial weights; raises InputError for a space too large to score one by one."""
        count = space.count()
        if count > MOST:
            raise InputError(
                f"balanced_mixture keeps scores of every architecture, and space {space.name} has {count:,}; allowed: "
                f"spaces of up to {MOST:,}, or method single_path"
            )
        return MixtureSupernet(space, task, self.models)

    def step(self, supernet: Supernet, context: SupernetContext) -> BalancedMixtureStep:
        """Return the step; raises InputError for a task without an accuracy."""
        assert isinstance(supernet, MixtureSupernet)
        return BalancedMixtureStep(supernet, self, context)

    def train(self, supernet: Supernet, context: SupernetContext) -> Training:
        """Train the models; the report tells how often each was trained."""
        training = super().train(supernet, context)
        assert isinstance(supernet, MixtureSupernet)
        told: dict[str, Any] = {
            "updates_of_models": supernet.visits.sum(0).tolist(),
            "never_trained": int((supernet.visits == 0).sum()),
        }
        return replace(training, details={**training.details, **told})

    def metrics_for(self, task: TaskConfig) -> Collection[str]:
        """Return the task's, params, macs."""
        return names_for(task)

    def rater(self, trained: TrainedSupernet, supernet: Supernet, device: str, recalibrate: int) -> Rater:
        """Return what asks all models, or the most probable."""
        assert isinstance(supernet, MixtureSupernet)
        return MixtureRater(supernet, device, recalibrate, self.choice)
