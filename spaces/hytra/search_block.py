"""A block of the supernet as block-wise training sees it: its legal paths, and the features along one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from spaces.architecture import Choice
from spaces.hytra.block import Block
from spaces.hytra.codes import choices_of
from spaces.hytra.fabric import Fabric
from spaces.supernet import SupernetBlock


class HyTraBlock(SupernetBlock):
    """The layers of one block; the first block has the stem before them."""

    def __init__(self, fabric: Fabric, index: int, stem: nn.Module, layers: Block) -> None:
        super().__init__()
        self.fabric, self.first = fabric, index * fabric.block_layers
        self.stem, self.layers = stem if index == 0 else nn.Identity(), layers
        last = self.first + fabric.block_layers - 1
        self.outputs = {layers.widths[scale]: 2**scale for scale in range(fabric.largest[last] + 1)}
        self.path: tuple[int, ...] | None = None

    def paths(self, before: Mapping[str, Choice]) -> Sequence[Mapping[str, Choice]]:
        """Return the paths that BossNAS trains: those that start on the scale where `before` ends, or one below.

        The first block starts on the largest scale or one below. Scales that a later block has no weights for are left
        out.
        """
        fabric = self.fabric
        done = fabric.path(before, self.first)
        largest = fabric.place(done[-1])[0] if done else fabric.largest[0]
        bounds = fabric.largest[self.first :]
        legal = [
            codes
            for codes in fabric.block_paths(largest, searched=True)
            if all(fabric.place(code)[0] <= bound for code, bound in zip(codes, bounds, strict=False))
        ]
        return [choices_of([*done, *codes], fabric) for codes in legal]

    def code(self, path: Mapping[str, Choice]) -> str:
        """Return the published codes of the layers, such as 5433."""
        return "".join(map(str, self._codes(path)))

    def activate(self, path: Mapping[str, Choice]) -> None:
        """Let `forward` compute this block's part of a path."""
        self.path = self._codes(path)

    def forward(self, features: Tensor) -> Tensor:
        """Map images (N, C, H, W) or the features of the block before to (N, C', H', W')."""
        assert self.path is not None
        out: Tensor = self.layers(self.stem(features), self.path)
        return out

    def _codes(self, path: Mapping[str, Choice]) -> tuple[int, ...]:
        return self.fabric.path(path, self.first + self.fabric.block_layers)[self.first :]
