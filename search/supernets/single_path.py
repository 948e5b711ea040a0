"""Single path one-shot: each update trains one random architecture (Guo et al. 2020, "Single Path One-Shot ...")."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import seed_of
from search.supernets.method import SupernetContext, SupernetMethod, SupernetStep, methods
from spaces.supernet import Supernet


class SinglePathStep(SupernetStep):
    """One architecture per update, each of the space's as likely."""

    def __init__(self, supernet: Supernet, context: SupernetContext) -> None:
        super().__init__(context)
        self.space, self.seed = supernet.space, context.seed

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the loss of the architecture that is drawn for this update."""
        model.activate(self.space.sample(random.Random(seed_of(self.seed, update))))  # type: ignore[operator]
        return self.loss_of(model, self.task.mixed(batch))


@methods.register("single_path")
class SinglePath(SupernetMethod):
    """Train one random architecture per update (SPOS)."""

    name: Literal["single_path"] = Field("single_path", description="one random architecture per update")

    def step(self, supernet: Supernet, context: SupernetContext) -> SinglePathStep:
        """Return the step."""
        return SinglePathStep(supernet, context)
