"""One update of sorted training: some members, each on the whole batch or on its part, and one step for all."""

from __future__ import annotations

import random
from typing import Literal, cast

import torch
from torch import Tensor, nn

from compress.distill.losses import LossConfig
from compress.sorted.network import NestedNetwork
from compress.sorted.sampling import Draw
from compress.sorted.untouched import Untouched
from compress.training.engine import Engine
from compress.training.step import TrainingStep
from compress.training.supervised import Supervised
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import seed_of

Spend = Literal["repeat", "split"]
"""How members share a batch: each sees all of it, or each a part."""


class SortedStep(TrainingStep):
    """The mean loss of the members that are drawn for an update ("SortedNet", Valipour et al. 2023, section 3).

    What none of them uses stays as it is, and in the end of an epoch the full network is active.
    """

    def __init__(
        self, learning: Supervised, draw: Draw, spend: Spend, seed: int, distill: LossConfig | None = None
    ) -> None:
        """Prepare the first update.

        Args:
            learning: the loss of one member.
            draw: which members an update trains.
            spend: how they share a batch.
            seed: of the draws.
            distill: how the others learn from the first of an update, the full network; None: they do not.
        """
        super().__init__()
        self.learning, self.draw, self.spend, self.seed, self.distill = learning, draw, spend, seed, distill
        self._untouched: Untouched | None = None

    def prepare(self, model: nn.Module, engine: Engine) -> None:
        """Get ready for updates of the nested network `model`."""
        super().prepare(model, engine)
        self.learning.prepare(model, engine)

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the mean loss, after the backward pass of each member."""
        network = cast(NestedNetwork, model)
        task = self.learning.task
        batch = task.mixed(batch)
        members = self.draw(random.Random(seed_of(self.seed, update)))
        parts = self._parts(batch, len(members))
        total = torch.zeros((), device=self.engine.device)
        guidance: Tensor | None = None
        for arch, part in zip(members, parts, strict=False):
            network.activate(arch)
            outputs, loss = self.learning.learnt(model, part)
            if self.distill is not None:
                student = task.tensor(outputs)
                if guidance is None:
                    guidance = student.detach()
                else:
                    loss = self.distill.term(student, guidance) + self.distill.label_share * loss
            share = 1 / len(members) if self.spend == "repeat" else len(part) / len(batch)
            self.engine.backward(share * loss)
            total += share * loss.detach()
        if self._untouched is None:
            self._untouched = Untouched(_plain(model), self.optimizer)
        self._untouched.note(members[: len(parts)])
        return total

    def after_update(self, model: nn.Module, update: int) -> None:
        """Put back what no member of the update has used."""
        assert self._untouched is not None
        self._untouched.put_back()

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        """Let what is evaluated be the full network."""
        network = _plain(model)
        network.activate(network.full)

    def _parts(self, batch: Batch, count: int) -> list[Batch]:
        """Return what each of `count` members sees; a short batch may be too small for all."""
        if self.spend == "repeat":
            return [batch.mapped(torch.clone) for _ in range(count)]  # a member may change its inputs
        return list(batch.split(-(-len(batch) // count)))


def _plain(model: nn.Module) -> NestedNetwork:
    """Return the nested network itself, without what makes it run at the run's precision."""
    return cast(NestedNetwork, getattr(model, "_original_module", None) or model)
