"""Several supernets of one space, and how well each of them has done with each architecture so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from evaluators.tasks import Task
from search.supernets.balancing import assigned, balanced
from spaces.architecture import Architecture
from spaces.space import Space
from spaces.supernet import Supernet


class MixtureSupernet(Supernet):
    """`models` supernets with weights of their own; one of them runs at a time.

    Attributes:
        supernets: the members.
        rows: the row of each architecture in the tables below.
        running: which member `forward` runs.
        scores: (architectures, models) moving average of accuracies, 0 to 1; 1 where a member has not had the
            architecture yet, so that untried members are attractive.
        visits: (architectures, models) how many updates each member has had of each architecture.
        temperature: what scores are multiplied by, before a softmax over the members.
        shift: (models,) what that leaves out of each member's logits for all to be equally busy.
        divisions: how many steps of proportional fitting that took.
    """

    scores: Tensor
    visits: Tensor
    temperature: Tensor
    shift: Tensor
    divisions: Tensor

    def __init__(self, space: Space, task: Task, models: int) -> None:
        """The members differ in their initial weights, which are drawn one after the other."""
        super().__init__(space, task)
        self.supernets = nn.ModuleList(space.supernet(task) for _ in range(models))
        self.rows = {arch: row for row, arch in enumerate(space)}
        self.running = 0
        self.register_buffer("scores", torch.ones(len(self.rows), models))
        self.register_buffer("visits", torch.zeros(len(self.rows), models, dtype=torch.long))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("shift", torch.zeros(models))
        self.register_buffer("divisions", torch.zeros((), dtype=torch.long))

    def use(self, arch: Architecture, model: int) -> None:
        """Let `forward` compute `arch` with the weights of member number `model`."""
        self.running = model
        self._member(model).activate(arch)
        self.active = arch

    def _member(self, model: int) -> Supernet:
        return cast(Supernet, self.supernets[model])

    @property
    def running_supernet(self) -> Supernet:
        """The member that `forward` runs."""
        return self._member(self.running)

    def _activate(self, arch: Architecture) -> None:
        self.use(arch, self.home(arch))

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs (N, num_outputs) of the active architecture for images (N, C, H, W)."""
        outputs: Tensor = self.running_supernet(images)
        return outputs

    def members(self, arch: Architecture) -> Sequence[Supernet]:
        """Return all of them: each has weights for every architecture."""
        return [self._member(model) for model in range(len(self.supernets))]

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the weights of the member that `arch` most probably trained."""
        return self._member(self.home(arch)).inherited(arch)

    # Who trains what.

    def balance(self) -> None:
        """Fit the shares of the members to the scores of now."""
        shift, divisions = balanced(self._logits(self.scores))
        self.shift.copy_(shift)
        self.divisions.fill_(divisions)

    def probabilities(self, arch: Architecture) -> list[float]:
        """Return how probable each member is to train `arch`."""
        found: list[float] = assigned(self._logits(self.scores[self.rows[arch]]), self.shift.cpu().double()).tolist()
        return found

    def home(self, arch: Architecture) -> int:
        """Return the most probable member of those that have trained `arch`; of all, where none has."""
        visits = self.visits[self.rows[arch]].tolist()
        probable = self.probabilities(arch)
        return max(range(len(visits)), key=lambda model: (visits[model] > 0, probable[model]))

    def learn(self, score: float, decay: float) -> None:
        """Enter the accuracy (0 to 1) that the active architecture has had after its update."""
        assert self.active is not None
        place = (self.rows[self.active], self.running)
        self.scores[place] = decay * self.scores[place] + (1 - decay) * score
        self.visits[place] += 1

    def _logits(self, scores: Tensor) -> Tensor:
        return float(self.temperature) * scores.cpu().double()  # in this order: mps has no float64
