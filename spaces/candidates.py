"""What supernets hold where a space chooses between modules: all of them, of which one or a mixture runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.architecture import Architecture

if TYPE_CHECKING:
    from spaces.space import Space


class Candidates(nn.ModuleDict):
    """Modules for one place, each with weights of its own; the `chosen` ones run, and may be scaled."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(modules)
        self.chosen: dict[str, Tensor | None] = {}

    def choose(self, *names: str) -> None:
        """Let one module run, or none."""
        self.chosen = dict.fromkeys(names)

    def mix(self, weights: Mapping[str, Tensor]) -> None:
        """Let modules run whose outputs are added up with these scalar weights."""
        self.chosen = dict(weights)

    def __getstate__(self) -> dict[str, Any]:
        weights = {name: weight if weight is None else weight.detach() for name, weight in self.chosen.items()}
        return {**self.__dict__, "chosen": weights}  # tensors with a history cannot be copied

    def forward(self, x: Tensor) -> Tensor:
        """Return the chosen module's output, or the weighted sum of several."""
        if not self.chosen:
            raise ValueError("no candidate is chosen")
        outputs = ((self[name](x), weight) for name, weight in self.chosen.items())
        return total(out if weight is None else weight * out for out, weight in outputs)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of at least one tensor, in their order."""
    return reduce(add, terms)


class AdditiveMacs:
    """MACs of a space whose choices each cost the same whatever the others are."""

    def __init__(self, space: Space, task: Task) -> None:
        cheapest = {decision.name: decision.choices[0] for decision in space.decisions}
        self.base = space.cost(Architecture(cheapest), task)["macs"]
        self.added = {
            decision.name: [
                space.cost(Architecture({**cheapest, decision.name: choice}), task)["macs"] - self.base
                for choice in decision.choices
            ]
            for decision in space.decisions
        }

    def expected(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the expectation for probabilities (choices,) of every decision."""
        return self.base + total(
            (weights[name] * weights[name].new_tensor(macs)).sum() for name, macs in self.added.items()
        )
