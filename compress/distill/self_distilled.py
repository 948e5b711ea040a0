"""Self-distillation of a transformer whose features are a sum of paths: the short sums learn from the whole one."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from compress.core.batch_norm import enough_values
from compress.core.errors import InputError
from compress.distill.losses.kd import kd_loss
from compress.training.engine import Engine
from compress.training.step import StepConfig, StepContext, steps
from compress.training.supervised import Supervised
from compress.training.trainer import training_split
from compress.transforms.paths import PathEnsemble, ensemble_of
from compress.transforms.pre_norm import rows_of
from evaluators.datasets.batch import Batch, tensors_in
from evaluators.tasks import Task


class SelfDistilled(Supervised):
    """The loss on the labels, and the distance of the predictions of shorter sums of paths from the whole one.

    L = loss on the labels + weight * mean over k of T^2 KL(softmax(y / T) || softmax(y_k / T)), where y_k is what the
    model's own norm and head make of the paths of the first k blocks alone, and y, the whole prediction, is a constant.
    One pass does it: what follows on the blocks sees the sums along the batch.
    """

    def __init__(self, context: StepContext, config: SelfDistilledConfig) -> None:
        super().__init__(context)
        self.config, self.context = config, context

    def prepare(self, model: nn.Module, engine: Engine) -> None:
        """Find the sum of paths, or the blocks whose sum can be taken by paths for as long as the model learns.

        Raises:
            InputError: the model is no pre-norm transformer.
        """
        super().prepare(model, engine)
        ensemble = ensemble_of(model)
        self.swap: AbstractContextManager[None] = nullcontext()
        if ensemble is None:
            batch = engine.moved(next(iter(training_split(self.context.data).epoch(0))).part(0, 1))
            try:
                row = rows_of(model, next(tensors_in(batch.inputs)))[-1]
            except InputError as error:
                raise InputError(f"step path_ensemble: {error}") from error
            ensemble = PathEnsemble(list(row.blocks), row.width)
            self.swap = _Swapped(model, row.name, ensemble)
        self.ensembles = (ensemble,)  # a tuple: its blocks are the model's, and no part of this step
        depths = (math.floor(share * ensemble.depth) for share in self.config.depths)
        self.prefixes = sorted({min(max(depth, 1), ensemble.depth) for depth in depths})

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the loss on the labels and on the whole prediction."""
        batch = self.task.mixed(batch)
        (ensemble,) = self.ensembles
        with enough_values(), self.swap, ensemble.with_prefixes(self.prefixes):
            outputs = self.task.tensor(self.task.forward(model, batch))
        whole, *short = outputs.chunk(1 + len(self.prefixes))
        terms = [kd_loss(each, whole.detach(), self.config.temperature) for each in short]
        return self.task.loss(whole, batch, model) + self.config.weight * torch.stack(terms).mean()


class _Swapped(AbstractContextManager[None]):
    """Another module in the place of one, while a block runs; the weights are the same."""

    def __init__(self, model: nn.Module, name: str, other: nn.Module) -> None:
        parent, _, self.child = name.rpartition(".")
        self.holder, self.other = model.get_submodule(parent), other

    def __enter__(self) -> None:
        self.given = self.holder._modules[self.child]
        self.other.train(self.holder.training)
        self.holder._modules[self.child] = self.other

    def __exit__(self, *_: object) -> None:
        self.holder._modules[self.child] = self.given


@steps.register("path_ensemble")
class SelfDistilledConfig(StepConfig):
    """Learn from the labels, and let short sums of paths learn from the whole one (Path Ensemble)."""

    name: Literal["path_ensemble"] = Field("path_ensemble", description="short sums of paths learn from the whole one")
    weight: float = Field(0.5, ge=0, description="of the distance of the short sums, beside the loss on the labels")
    temperature: float = Field(2.0, gt=0, description="softens both predictions")
    depths: list[float] = Field([0.5, 0.75], min_length=1, description="shares of the blocks whose sums learn")

    def unfit(self, task: Task) -> str | None:
        """Return that the task gives no probabilities of classes, if so."""
        if task.scored != "nothing":
            return None
        return f"path_ensemble compares probabilities of classes, and task {task.name} gives none; got {self.name}"

    @field_validator("depths")
    @classmethod
    def _below_one(cls, value: list[float]) -> list[float]:
        if not all(0 < share < 1 for share in value):
            raise ValueError("depths must lie between 0 and 1")
        return value

    def make(self, context: StepContext) -> SelfDistilled:
        """Return the step."""
        return SelfDistilled(context, self)
