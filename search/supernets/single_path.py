"""Single-path one-shot: each update trains one architecture, or a few (Guo et al. 2020, "Single Path One-Shot ...")."""

from __future__ import annotations

import random
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import seed_of
from search.supernets.method import SupernetContext, SupernetMethod, SupernetStep, methods
from search.supernets.paths import PathConfig, PathSection, Sandwich, Uniform
from spaces.supernet import Supernet


class SinglePathStep(SupernetStep):
    """The loss of the paths that are drawn for an update, whose gradients are added up."""

    def __init__(self, supernet: Supernet, context: SupernetContext, paths: PathConfig) -> None:
        super().__init__(context)
        self.seed, self.draw = context.seed, paths.drawer(supernet.space, supernet.task)
        self.distill = paths.distill if isinstance(paths, Sandwich) else None

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the sum of the losses of all paths, each on the whole batch."""
        batch = self.task.mixed(batch)
        first, *others = self.draw(random.Random(seed_of(self.seed, update)))
        if not others:
            model.activate(first)  # type: ignore[operator]
            return self.loss_of(model, batch)
        guidance, total = None, torch.zeros((), device=self.engine.device)
        for arch in (first, *others):
            model.activate(arch)  # type: ignore[operator]
            outputs, loss = self.learnt(model, batch.mapped(torch.clone))  # a path may change its inputs
            if self.distill is not None:
                student = self.task.tensor(outputs)
                if guidance is None:
                    guidance = student.detach()
                else:
                    loss = self.distill.term(student, guidance) + self.distill.label_share * loss
            self.engine.backward(loss)
            total += loss.detach()
        return total


@methods.register("single_path")
class SinglePath(SupernetMethod):
    """Train one architecture per update, or a few: uniform (SPOS), fair, or by the sandwich rule."""

    name: Literal["single_path"] = Field("single_path", description="one architecture per update, or a few")
    paths: PathSection = Field(Uniform(), description="which architectures an update trains")

    def step(self, supernet: Supernet, context: SupernetContext) -> SinglePathStep:
        """Return the step."""
        return SinglePathStep(supernet, context, self.paths)
