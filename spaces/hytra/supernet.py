"""The supernet of BossNAS: blocks of layers, of whose candidates only the sampled path runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.architecture import Architecture
from spaces.hytra.block import Block, Route, follow
from spaces.hytra.operations import initialise, make_stem, style_of
from spaces.hytra.search_block import HyTraBlock
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from spaces.hytra.space import HyTra


class HyTraSupernet(Supernet):
    """Stem, blocks, and a classifier for each scale on which a path may end.

    Each block can be run, and so trained, alone on the features of the one before (`forward_block`); its parameters
    are those of `stages[index]`, with those of `stem` for the first.
    """

    space: HyTra

    def __init__(self, space: HyTra, task: Task) -> None:
        super().__init__(space, task)
        config, fabric = space.config, space.fabric
        self.stem = make_stem(config, task.in_chans, style_of(config))
        self.stages = nn.ModuleList(Block(config, fabric, index) for index in range(config.blocks))
        ends = config.channels[::-1][: fabric.largest[-1] + 1]
        self.heads = nn.ModuleList(nn.Linear(channels, task.num_outputs) for channels in ends)
        initialise(self)
        self._running: tuple[nn.Module, Route, nn.Module] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of the active architecture for images (N, C, H, W)."""
        if self._running is None:
            raise ValueError("activate an architecture first")
        patches, route, head = self._running
        features = follow(route, patches(self.stem(images)))
        logits: Tensor = head(features.mean((2, 3)))
        return logits

    def forward_block(self, index: int, features: Tensor, path: Sequence[int] | None = None) -> Tensor:
        """Run one block alone.

        Args:
            index: of the block.
            features: what the block before puts out (N, C, H, W); for block 0, what `stem` does.
            path: the codes of the block's layers, one of `HyTra.block_paths`; None takes the active architecture's.

        Raises:
            InputError: for a path that does not follow on these features or leaves the block's scales.
        """
        if path is None:
            if self.active is None:
                raise ValueError("activate an architecture first, or give a path")
            path = self._paths(self.active)[index]
        out: Tensor = self.stages[index](features, path)
        return out

    def blocks(self) -> Sequence[HyTraBlock]:
        """Return the blocks, the first with the stem before it."""
        fabric = self.space.fabric
        stages = (stage for stage in self.stages if isinstance(stage, Block))
        return [HyTraBlock(fabric, index, self.stem, stage) for index, stage in enumerate(stages)]

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the state of the checked `arch`'s stand-alone network; its tensors are the shared weights."""
        patches, route, head = self._parts(arch)
        state: dict[str, Tensor] = {}
        for name, module in (("stem", self.stem), ("patches", patches), ("head", head)):
            state |= module.state_dict(prefix=f"{name}.")
        for layer, (candidate, down) in enumerate(route):
            state |= candidate.entry(down).state_dict(prefix=f"layers.{layer}.entry.")
            state |= candidate.body.state_dict(prefix=f"layers.{layer}.body.")
        return state

    def _activate(self, arch: Architecture) -> None:
        self._running = self._parts(arch)  # in a tuple: as attributes they would be registered a second time

    def _parts(self, arch: Architecture) -> tuple[nn.Module, Route, nn.Module]:
        """Return the patches, the candidates and the classifier that `arch` uses."""
        fabric, paths = self.space.fabric, self._paths(arch)
        route: Route = []
        before = None
        for block, path in zip(self.stages, paths, strict=True):
            assert isinstance(block, Block)
            route += block.route(path, before)
            before = fabric.place(path[-1])[0]
        first = self.stages[0]
        assert isinstance(first, Block) and before is not None
        return first.patches[fabric.place(paths[0][0])[0]], route, self.heads[before]

    def _paths(self, arch: Architecture) -> list[list[int]]:
        """Return the codes of each block's layers."""
        codes, step = self.space.codes(arch), self.space.fabric.block_layers
        return [codes[start : start + step] for start in range(0, len(codes), step)]
