"""The slimmable supernet of the NATS-Bench size space: shared convolutions, one batch norm for each width.

Yu et al., "Slimmable Neural Networks", section 3: statistics of different widths differ, so they are kept apart.
Its network is built of positions instead of widths: 0 is the image, 1 to 5 are the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, cast

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.nats_size.network import NATSNetwork, Parts
from spaces.supernet import Supernet, SupernetBlock

if TYPE_CHECKING:
    from spaces.nats_size.space import NATSSizeSpace

Offered = Sequence[Sequence[int]]
"""The widths at each position, ascending."""


class SlimmableNorm(nn.Module):
    """A batch norm for each width of a position."""

    def __init__(self, offered: Offered, position: int) -> None:
        super().__init__()
        self.position = position
        self.widths = nn.ModuleDict({str(width): nn.BatchNorm2d(width) for width in offered[position]})

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W) as networks that are C wide here do."""
        out: Tensor = self.widths[str(x.shape[1])](x)
        return out

    def inherited(self, channels: Sequence[int]) -> Mapping[str, Tensor]:
        """Return the state for networks with these channels at all positions."""
        return self.widths[str(channels[self.position])].state_dict()


class SlimmableUnit(nn.Module):
    """A `network.Unit` whose convolution uses the first channels of its weight: as many as come in, and `width` out."""

    def __init__(
        self,
        offered: Offered,
        source: int,
        target: int,
        kernel: int,
        stride: int = 1,
        relu: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.relu, self.stride = relu, stride
        self.conv = nn.Conv2d(offered[source][-1], offered[target][-1], kernel, stride, kernel // 2, bias=False)
        self.norm = SlimmableNorm(offered, target) if norm else nn.Identity()
        self.width = offered[target][-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, width, H / stride, W / stride)."""
        weight = first(self.conv.weight, self.width, x.shape[1])
        x = F.relu(x) if self.relu else x
        out: Tensor = self.norm(F.conv2d(x, weight, None, self.stride, self.conv.kernel_size[0] // 2))
        return out

    def inherited(self, channels: Sequence[int]) -> Mapping[str, Tensor]:
        """Return the state for networks with these channels at all positions."""
        weight = first(self.conv.weight.detach(), channels[self.target], channels[self.source])
        norm = self.norm.inherited(channels) if isinstance(self.norm, SlimmableNorm) else {}
        return {"conv.weight": weight, **_prefixed("norm", norm)}


class SlimmableSkip(SlimmableUnit):
    """The skip of a cell, which is the identity where the cell keeps its width."""

    def __init__(self, offered: Offered, source: int, target: int) -> None:
        super().__init__(offered, source, target, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, width, H, W)."""
        return x if x.shape[1] == self.width else super().forward(x)

    def inherited(self, channels: Sequence[int]) -> Mapping[str, Tensor]:
        """Return the state for networks with these channels at all positions; the identity has none."""
        return {} if channels[self.source] == channels[self.target] else super().inherited(channels)


def slimmable_skip(offered: Offered, source: int, target: int) -> nn.Module:
    """Return the skip of a cell; the first cell reads and writes the same position."""
    return nn.Identity() if source == target else SlimmableSkip(offered, source, target)


class SlimmableLinear(nn.Linear):
    """The classifier, which uses the first columns of its weight."""

    def __init__(self, offered: Offered, position: int, num_classes: int) -> None:
        super().__init__(offered[position][-1], num_classes)
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C) to (N, num_classes)."""
        return F.linear(x, first(self.weight, self.out_features, x.shape[1]), self.bias)

    def inherited(self, channels: Sequence[int]) -> Mapping[str, Tensor]:
        """Return the state for networks with these channels at all positions."""
        weight = first(self.weight.detach(), self.out_features, channels[self.position])
        return {"weight": weight, "bias": self.bias.detach()}


def first(weight: Tensor, outputs: int, inputs: int) -> Tensor:
    """Return a view of the first output and input channels of a weight."""
    shape = (outputs, inputs, *weight.shape[2:])
    return weight.as_strided(shape, weight.stride(), weight.storage_offset())


def _prefixed(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{leaf}": value for leaf, value in state.items()}


class NATSSizeSupernet(Supernet):
    """All networks on one set of convolutions; the widest is active at first."""

    def __init__(self, space: NATSSizeSpace, task: Task) -> None:
        super().__init__(space, task)
        offered = [(task.in_chans,), *([int(width) for width in decision.choices] for decision in space.decisions)]
        kinds = (SlimmableUnit, slimmable_skip, SlimmableNorm, SlimmableLinear)
        parts = Parts(*(partial(kind, offered) for kind in kinds))
        self.network = NATSNetwork(0, range(1, len(offered)), task.num_outputs, parts)
        self.activate(space.check({decision.name: decision.choices[-1] for decision in space.decisions}))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of the active architecture for images (N, C, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def blocks(self) -> Sequence[SupernetBlock]:
        """Return the blocks that BossNAS trains on CIFAR-10: positions 1 and 2 (with the stem), 3 and 4, 5."""
        network, decisions = self.network, self.space.decisions
        stem, final = [network.stem], [network.norm, nn.ReLU()]
        parts = ([*stem, *network.blocks[:2]], [*network.blocks[2:4]], [*network.blocks[4:], *final])
        places = (range(2), range(2, 4), range(4, 5))
        return [
            NATSSizeBlock([decisions[place] for place in each], each[0] + 1, modules)
            for each, modules in zip(places, parts, strict=True)
        ]

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the state of `arch`'s stand-alone network out of the shared weights."""
        channels = self._channels(arch)
        state = _prefixed("norm", cast(SlimmableNorm, self.network.norm).inherited(channels))
        for name, module in self.network.named_modules():
            if isinstance(module, (SlimmableUnit, SlimmableLinear)):
                state |= _prefixed(name, module.inherited(channels))
        return state

    def _activate(self, arch: Architecture) -> None:
        channels = self._channels(arch)
        for module in self.network.modules():
            if isinstance(module, SlimmableUnit):
                module.width = channels[module.target]

    def _channels(self, arch: Architecture) -> list[int]:
        return [self.task.in_chans, *(arch.number(decision.name) for decision in self.space.decisions)]


class NATSSizeBlock(SupernetBlock):
    """One or two positions of the network, whose widths it decides."""

    def __init__(self, decisions: Sequence[Decision], first: int, modules: Sequence[nn.Module]) -> None:
        """`first` is the position of the first decision; `modules` run one after the other."""
        super().__init__()
        self.decisions, self.first = tuple(decisions), first
        self.layers = nn.Sequential(*modules)
        self.outputs = {int(width): 1 for width in self.decisions[-1].choices}

    def paths(self, before: Mapping[str, Choice]) -> Sequence[Mapping[str, Choice]]:
        """Return all combinations of widths."""
        names = [decision.name for decision in self.decisions]
        widths = product(*(decision.choices for decision in self.decisions))
        return [{**before, **dict(zip(names, each, strict=True))} for each in widths]

    def code(self, path: Mapping[str, Choice]) -> str:
        """Return one digit for each position: the place of its width among those that are offered."""
        return "".join(str(decision.index(path[decision.name])) for decision in self.decisions)

    def activate(self, path: Mapping[str, Choice]) -> None:
        """Let `forward` compute with the widths of a path."""
        for module in self.layers.modules():
            if isinstance(module, SlimmableUnit):
                module.width = int(path[self.decisions[module.target - self.first].name])

    def forward(self, features: Tensor) -> Tensor:
        """Map images (N, C, H, W) or the features of the block before to (N, C', H', W')."""
        out: Tensor = self.layers(features)
        return out
