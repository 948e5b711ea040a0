"""The space of placements of a backbone's halvings."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import Field
from torch import nn

from compress.core.config import Config
from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.layers import Layer
from spaces.pooling.backbones import Backbone, open_backbone
from spaces.pooling.calls import meta_images, on_meta, trace
from spaces.pooling.chain import Chain, find_chain
from spaces.pooling.code import binary_of, lengths_of, read_code
from spaces.pooling.moves import How
from spaces.pooling.norm import has_batch_norm, use_batch_statistics
from spaces.pooling.presets import PRESETS
from spaces.pooling.resnet import resnet_layers
from spaces.pooling.supernet import PoolingSupernet
from spaces.pooling.tree import PlacementTree, choices_of, decision_name, decisions, positions_of
from spaces.pooling.unit_costs import CostTable, measure
from spaces.registry import spaces
from spaces.space import Space


class PoolingConfig(Config):
    """Options of the space of pooling placements."""

    backbone: str = Field(
        "resnet20",
        min_length=1,
        description="resnet20, resnet18, resnet50 (for 32 px), resnet50_224, timm:NAME or torchvision:NAME",
    )
    units: tuple[str, ...] | None = Field(
        None, min_length=1, description="globs of module names that make up the chain; null: its stages' blocks"
    )
    halvings: int | None = Field(None, ge=1, description="halvings in the chain; null: as many as the backbone has")
    how: Literal["max_pool", "stride"] | None = Field(
        None,
        description="what halves: a 2x2 max pool before the unit, or the stride of its convolution; null: as published "
        "(max_pool for resnet20), for timm and torchvision stride where every unit can take one",
    )
    norm: Literal["batch", "batch_statistics"] = Field(
        "batch",
        description="batch: ordinary batch norm; batch_statistics: no affine parameters and no running statistics",
    )


@spaces.register("pooling")
class PoolingSpace(Space):
    """Where a chain of units halves its map; operations and widths stay where they are.

    Javan, Toews, Pedersoli, "Balanced Mixture of SuperNets for Learning the CNN Pooling Architecture". One decision per
    boundary, asked from the front while there is a choice; strides of the first unit and before it are not moved.

    Attributes:
        chain: the units, by name, and what halves the map at each.
        halvings: halvings of every architecture.
        how: what halves.
    """

    Config = PoolingConfig
    presets = PRESETS

    def __init__(self, config: PoolingConfig) -> None:
        self.config = config
        self._tables: dict[Task, CostTable] = {}
        try:
            self.backbone: Backbone = open_backbone(config.backbone)
            self._open()
        except InputError as error:
            where = f"space pooling, backbone {config.backbone}"
            raise InputError(*(f"{where}: {problem}" for problem in error.problems)) from None
        super().__init__(config)

    # The chain.

    def _open(self) -> None:
        """Find the chain; without a wish how to halve, the first way that works at every unit."""
        wished = self.config.how or self.backbone.how
        ways: tuple[How, ...] = (wished,) if wished else ("stride", "max_pool")
        for how in ways:
            try:
                self._open_with(how)
                return
            except InputError:
                if how == ways[-1]:
                    raise

    def _open_with(self, how: How) -> None:
        network = on_meta(self.backbone.create, self.backbone.task)
        if self.config.norm == "batch_statistics" and not has_batch_norm(network):
            raise InputError("norm: got 'batch_statistics' for a network without batch norm; allowed 'batch'")
        plan = self.backbone.plan
        calls = trace(network, meta_images(self.backbone.task))
        self.how = how
        self.chain = find_chain(network, calls, self.config.units or (plan.globs if plan else None), how)
        self.halvings = self._halvings(self.chain)
        size = max(self.backbone.task.img_size, self._least_size())  # more halvings than the backbone's need more room
        own = self.backbone.task
        self.default_task = own.resized((own.in_chans, size, size))
        if plan is None or self.config.units:
            self._table(self.default_task)  # moves every halving everywhere, so a chain that cannot be is refused here

    def _halvings(self, chain: Chain) -> int:
        found = self.config.halvings or len(chain.halved)
        most = len(chain.units) - 1
        if not found:
            raise InputError(f"halves the map nowhere in its {most + 1} units; give halvings, 1 to {most}")
        if found > most:
            raise InputError(f"halvings: got {found}; allowed 1 to {most}, as the chain has {most + 1} units")
        return found

    def positions(self, arch: Architecture) -> tuple[int, ...]:
        """Return the units that halve the map, in order."""
        return positions_of(arch, len(self.chain.units), self.halvings)

    def at(self, positions: Sequence[int]) -> Architecture:
        """Return the architecture that halves the map at these units; InputError where there is none."""
        return self.parse(binary_of(positions, len(self.chain.units)))

    def _at(self, positions: Sequence[int]) -> Architecture:
        return self._remember(Architecture(dict(choices_of(positions, len(self.chain.units)))))

    # Which architectures there are.

    def _decisions(self) -> Sequence[Decision]:
        return decisions(len(self.chain.units), self.halvings)

    @cached_property
    def tree(self) -> PlacementTree:
        """The tree of placements, in the order of the published tables: [1, 1, 8] first, [8, 1, 1] last."""
        return PlacementTree(len(self.chain.units), self.halvings)

    def from_code(self, code: Any) -> dict[str, Choice]:
        """Return the choices of segment lengths such as [4, 3, 3] or of a binary code such as "0000100100"."""
        units = len(self.chain.units)
        return dict(choices_of(read_code(code, units, self.halvings), units))

    def to_code(self, arch: Architecture) -> list[int]:
        """Return the segment lengths: how many units work at each resolution."""
        return lengths_of(self.positions(arch), len(self.chain.units))

    def to_binary(self, arch: Architecture) -> str:
        """Return the other published code: one digit per unit, 1 where the map is halved at it."""
        return binary_of(self.positions(arch), len(self.chain.units))

    def mutate(self, arch: Architecture, generator: random.Random) -> Architecture:
        """Return `arch` with one halving moved to a boundary without one, both drawn uniformly.

        Changing one decision alone would shift all halvings behind it or leave one too many.
        """
        positions = self.positions(arch)
        free = [unit for unit in range(1, len(self.chain.units)) if unit not in positions]
        if not free:
            return arch
        moved = generator.choice(positions)
        return self._at([unit for unit in positions if unit != moved] + [generator.choice(free)])

    def neighbours(self, arch: Architecture, generator: random.Random | None = None) -> Iterator[Architecture]:
        """Yield every architecture with one halving moved to a boundary without one."""
        positions = self.positions(arch)
        for moved in positions:
            for unit in range(1, len(self.chain.units)):
                if unit not in positions:
                    yield self._at([other for other in positions if other != moved] + [unit])

    # What an architecture is.

    def prepared(self, task: Task) -> nn.Module:
        """Return the backbone, ready to have its halvings placed: none yet."""
        self._check_size(task)
        network = self.backbone.create(task)
        if self.config.norm == "batch_statistics":
            use_batch_statistics(network)
        self.chain.prepare(network)
        return network

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        network = self.prepared(task)
        self.chain.place(network, (), self.positions(arch))
        return network

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        positions = self.positions(arch)
        if self.backbone.plan and not self.config.units:
            self._check_size(task)
            return resnet_layers(self.backbone.plan, positions, self.how, self.config.norm == "batch", task)
        return self._table(task).layers(positions)

    def _supernet(self, task: Task) -> PoolingSupernet:
        return PoolingSupernet(self, task)

    def _table(self, task: Task) -> CostTable:
        if task not in self._tables:
            self._check_size(task)
            network, images = on_meta(self.backbone.create, task), meta_images(task)
            affine = self.config.norm == "batch"
            calls = trace(network, images)
            self._tables[task] = measure(network, calls, self.chain, images, self.halvings, affine)
        return self._tables[task]

    def _least_size(self) -> int:
        return self.chain.reduction * int(2**self.halvings)

    def _check_size(self, task: Task) -> None:
        if task.img_size < self._least_size():
            halvings = f"{self.halvings} halvings of backbone {self.config.backbone}"
            raise InputError(
                f"img_size: got {task.img_size} pixels; allowed {self._least_size()} or more, for {halvings}"
            )

    def _unknown(self, name: str) -> str:
        if name == decision_name(0):
            last = decision_name(len(self.chain.units) - 1)
            return f"{name}: nothing can halve the map before the first unit; allowed {decision_name(1)} to {last}"
        return super()._unknown(name)
