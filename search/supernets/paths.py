"""Which architectures an update of single-path training trains."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compress.core.config import Config
from compress.distill.losses import OutputDistillConfig
from compress.distill.losses.kd import KdConfig
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.space import Space, drawn_by

TRIES = 500
"""Draws before a path is taken although its MACs are not in the range (Guo et al.'s released code)."""

Draw = Callable[[random.Random], list[Architecture]]
"""Returns the architectures of one update, whose gradients are added up, by a generator."""


class MacsRange(Config):
    """Paths are drawn evenly over the MACs between two bounds, not as the space has them."""

    min: float = Field(0.0, ge=0, description="least MACs of a path")
    max: float = Field(gt=0, description="most MACs of a path")
    bins: int = Field(7, ge=1, description="parts of the range, each of which is drawn as often")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min ({self.min:g}) has to be below max ({self.max:g})")
        return self


class PathConfig(Config):
    """How paths are drawn; a subclass has a field `kind: Literal["..."]`, its options, and `drawer`."""

    kind: str

    @abstractmethod
    def drawer(self, space: Space, task: Task) -> Draw:
        """Return what draws the architectures of an update."""


class Uniform(PathConfig):
    """Each architecture of the space as likely (Guo et al. 2020, "Single Path One-Shot ...", section 3.2)."""

    kind: Literal["uniform"] = Field("uniform", description="each architecture as likely, or evenly over MACs")
    number: int = Field(1, ge=1, description="paths per update, whose gradients are added up")
    macs: MacsRange | None = Field(None, description="draw evenly over a range of MACs; null: as the space has them")

    def drawer(self, space: Space, task: Task) -> Draw:
        """Return what draws `number` architectures."""
        macs = self.macs
        if macs is None:
            return lambda generator: [space.sample(generator) for _ in range(self.number)]
        width = (macs.max - macs.min) / macs.bins

        def one(generator: random.Random) -> Architecture:
            low = macs.min + width * generator.randrange(macs.bins)
            for _ in range(TRIES):
                arch = space.sample(generator)
                if low <= space.cost(arch, task)["macs"] < low + width:
                    return arch
            return space.sample(generator)

        return lambda generator: [one(generator) for _ in range(self.number)]


class Fair(PathConfig):
    """Every choice of a decision is trained equally often within each update (Chu et al. 2021, "FairNAS", section 3.2).

    Each decision's choices are shuffled, and path j takes the j-th of every decision. There are as many paths as the
    decision with the most choices has; those of another are used once each before any is used again. Decisions that
    are taken under a condition are trained only where they are taken.
    """

    kind: Literal["fair"] = Field("fair", description="every choice of a decision once per update, in random company")

    def drawer(self, space: Space, task: Task) -> Draw:
        """Return what draws as many architectures as a decision has choices."""
        count = max(len(decision.choices) for decision in space.decisions)

        def draw(generator: random.Random) -> list[Architecture]:
            orders = {decision.name: shuffled(decision.choices, count, generator) for decision in space.decisions}
            fill = drawn_by(generator)
            paths = ({name: order[place] for name, order in orders.items()} for place in range(count))
            return [space.complete(path, fill) for path in paths]

        return draw


class Sandwich(PathConfig):
    """The largest and the smallest architecture and some in between, which learn from the largest.

    Yu and Huang 2019, "Universally Slimmable Networks", sections 3.2 (sandwich rule) and 3.3 (in-place distillation).
    Largest and smallest are found decision by decision, by MACs.
    """

    kind: Literal["sandwich"] = Field("sandwich", description="the largest, the smallest and some in between")
    between: int = Field(2, ge=0, description="random architectures beside the largest and the smallest")
    distill: OutputDistillConfig | None = Field(
        KdConfig(temperature=1.0, weight=1.0),
        description="how all but the largest learn from it; null: from the labels alone",
    )

    def drawer(self, space: Space, task: Task) -> Draw:
        """Return what draws the largest architecture, the smallest, then those in between."""
        ends = [extreme(space, task, 1), extreme(space, task, -1)]
        return lambda generator: [*ends, *(space.sample(generator) for _ in range(self.between))]


PathSection = Annotated[Uniform | Fair | Sandwich, Field(discriminator="kind")]


def extreme(space: Space, task: Task, sign: int) -> Architecture:
    """Return the architecture of most MACs (`sign` 1) or least (-1) that is found decision by decision.

    A later decision cannot mend an earlier one, so where choices pay only together another may lie beyond.
    """
    taken: dict[str, Choice] = {}
    for decision in space.decisions:
        costs: dict[Choice, float] = {}
        for choice in decision.choices:
            arch = space.complete({**taken, decision.name: choice}, _first)
            if decision.name in arch:
                costs[choice] = sign * space.cost(arch, task)["macs"]
        if costs:
            taken[decision.name] = max(costs, key=costs.__getitem__)
    return space.complete(taken, _first)


def _first(decision: Decision) -> Choice:
    return decision.choices[0]


def shuffled(choices: Sequence[Choice], count: int, generator: random.Random) -> Sequence[Choice]:
    """Return `count` choices: all of them in random order, then all of them in another, cut off."""
    found: list[Choice] = []
    while len(found) < count:
        found += generator.sample(choices, len(choices))
    return found[:count]
