"""Which members an update trains."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.registry import Registry
from compress.core.sections import OneOfShort
from spaces.architecture import Architecture

Draw = Callable[[random.Random], list[Architecture]]
"""Returns the members of one update, by a generator."""


class SamplingConfig(Config):
    """How members are drawn; a subclass has a field `kind: Literal["..."]`, its options, and `drawer`."""

    kind: str

    @abstractmethod
    def drawer(self, members: Sequence[Architecture], macs: Sequence[int], count: int) -> Draw:
        """Return what draws `count` of the members, whose MACs are `macs`.

        Raises InputError where the options do not fit them.
        """


samplings: Registry[type[SamplingConfig]] = Registry("sampling", "compress.sorted.sampling", SamplingConfig)


@samplings.register("uniform")
class Uniform(SamplingConfig):
    """Each member as likely: SortedNet's default."""

    kind: Literal["uniform"] = Field("uniform", description="each member as likely")

    def drawer(self, members: Sequence[Architecture], macs: Sequence[int], count: int) -> Draw:
        """Return what draws `count` members, one independently of the other."""
        return lambda generator: generator.choices(members, k=count)


@samplings.register("size")
class Size(SamplingConfig):
    """A member is the likelier the more it costs: P ~ MACs^alpha."""

    kind: Literal["size"] = Field("size", description="in proportion to a power of the MACs")
    alpha: float = Field(1.0, description="the power; 0 is uniform, below 0 smaller members are likelier")

    def drawer(self, members: Sequence[Architecture], macs: Sequence[int], count: int) -> Draw:
        """Return what draws `count` members by their MACs."""
        largest = max(macs)
        weights = [(each / largest) ** self.alpha for each in macs]
        return lambda generator: generator.choices(members, weights, k=count)


@samplings.register("weights")
class Weights(SamplingConfig):
    """A weight for each member."""

    kind: Literal["weights"] = Field("weights", description="in proportion to a number for each member")
    weights: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=1, description="one for each of sort.members, in their order (ascending by MACs unless listed)"
    )

    @field_validator("weights")
    @classmethod
    def _of_some_member(cls, weights: list[float]) -> list[float]:
        if not any(weights):
            raise ValueError("no member would be drawn; allowed with one of them above 0")
        return weights

    def drawer(self, members: Sequence[Architecture], macs: Sequence[int], count: int) -> Draw:
        """Return what draws `count` members by their weights."""
        if len(self.weights) != len(members):
            raise InputError(
                f"sort.sampling.weights: got {len(self.weights)} of them for {len(members)} members; "
                "allowed is one for each"
            )
        return lambda generator: generator.choices(members, self.weights, k=count)


@samplings.register("sandwich")
class Sandwich(SamplingConfig):
    """The largest, the smallest and random ones between (Yu and Huang 2019, "Universally Slimmable Networks")."""

    kind: Literal["sandwich"] = Field("sandwich", description="the largest, the smallest, the rest at random")

    def drawer(self, members: Sequence[Architecture], macs: Sequence[int], count: int) -> Draw:
        """Return what draws the largest member, the smallest, then `count` - 2 of any."""
        ranked = sorted(range(len(members)), key=macs.__getitem__)
        ends = [members[ranked[-1]], members[ranked[0]]]
        return lambda generator: [*ends, *generator.choices(members, k=count - 2)]


SamplingSection = Annotated[SamplingConfig, OneOfShort(samplings, "kind")]
