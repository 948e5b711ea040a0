"""Which paths of a block an update of block-wise training trains."""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from compress.core.config import Config
from compress.core.errors import InputError
from search.supernets.paths import shuffled
from spaces.architecture import Choice

Path = Mapping[str, Choice]
DrawPaths = Callable[[random.Random], list[Path]]
"""Returns the paths of one update by a generator."""


class BlockPaths(Config):
    """How paths are drawn; a subclass has a field `kind: Literal["..."]`, its options, and `drawer`."""

    kind: str

    @abstractmethod
    def drawer(self, paths: Sequence[Path], before: Path) -> DrawPaths:
        """Return what draws some of `paths`, those of a block after the path `before`."""


class DistinctPaths(BlockPaths):
    """Different paths of the block's list, each as likely (HyTra in BossNAS)."""

    kind: Literal["distinct"] = Field("distinct", description="different paths of the block, each as likely")
    number: int = Field(4, ge=1, description="paths per update; all, where the block has no more")

    def drawer(self, paths: Sequence[Path], before: Path) -> DrawPaths:
        """Return what draws `number` paths."""
        number = min(self.number, len(paths))
        return lambda generator: generator.sample(paths, number)


class FairPaths(BlockPaths):
    """Every choice of the block is trained equally often within an update (MBConv and NATS sizes in BossNAS).

    Each decision's choices are shuffled, and path j takes the j-th of every decision; see `search.supernets.paths`.
    """

    kind: Literal["fair"] = Field("fair", description="every choice of the block once per update, in random company")

    def drawer(self, paths: Sequence[Path], before: Path) -> DrawPaths:
        """Return what draws as many paths as a decision has choices; InputError where choices hang on each other."""
        choices: dict[str, tuple[Choice, ...]] = {}
        for name in (name for name in paths[0] if name not in before):
            choices[name] = tuple(dict.fromkeys(path[name] for path in paths if name in path))
        combinations = math.prod(len(each) for each in choices.values())
        if len(paths) != combinations or any(set(path) != {*before, *choices} for path in paths):
            raise InputError(
                "supernet.method.paths.kind: got fair, which needs choices that do not hang on each other within a "
                "block; allowed in this space: distinct"
            )
        count = max(len(each) for each in choices.values())

        def draw(generator: random.Random) -> list[Path]:
            orders = {name: shuffled(each, count, generator) for name, each in choices.items()}
            return [{**before, **{name: order[at] for name, order in orders.items()}} for at in range(count)]

        return draw


BlockPathsSection = Annotated[DistinctPaths | FairPaths, Field(discriminator="kind")]
