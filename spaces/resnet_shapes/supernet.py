"""The supernet of TAS: one set of convolutions for all widths, a batch norm for each width, all depths on one way.

Dong and Yang, "Network Pruning via Transformable Architecture Search", section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice
from spaces.candidates import total
from spaces.resnet_shapes.codes import conv_name, depth_name
from spaces.resnet_shapes.expectation import ExpectedMacs
from spaces.resnet_shapes.interpolation import widened
from spaces.resnet_shapes.network import initialise
from spaces.resnet_shapes.shape import KERNELS, Block, Shape, width_choices
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from spaces.resnet_shapes.space import ResNetShapesSpace

Chosen = Mapping[int, Tensor | None]
"""The widths (or depths) that are computed, with their scalar weights; None for a single one."""


class SharedConv(nn.Module):
    """A convolution whose first channels are that of all widths, and a batch norm for each width."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        widths = width_choices(outputs) if norm else ()
        self.norms = nn.ModuleDict({str(width): nn.BatchNorm2d(width) for width in widths})

    def forward(self, x: Tensor, chosen: Chosen, norm: bool = True) -> Tensor:
        """Map (N, C, H, W) to the sum of the chosen widths, each normed and brought to the widest of them."""
        widest = max(chosen)
        conv = self.conv
        y = F.conv2d(x, conv.weight[:widest, : x.shape[1]], None, conv.stride, conv.padding)
        parts = []
        for width, weight in chosen.items():
            part = y[:, :width]
            part = widened(self.norms[str(width)](part) if norm else part, widest)
            parts.append(part if weight is None else part * weight)
        return total(parts)

    def inherited(self, inputs: int, outputs: int, norm: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Yield the state of a unit of these widths."""
        yield "conv.weight", self.conv.weight.detach()[:outputs, :inputs]
        if norm:
            yield from ((f"norm.{name}", value) for name, value in self.norms[str(outputs)].state_dict().items())


class SharedBlock(nn.Module):
    """A residual block of all widths.

    Its shortcut is always a convolution where the whole network has one. Elsewhere it is one for single architectures
    whose widths differ, as in their own network; mixtures add on the channels that both have.
    """

    def __init__(self, shape: Shape, block: Block) -> None:
        super().__init__()
        self.padded, self.stride = block.padded, block.stride
        self.normed = shape.normed_shortcut(block)
        kernels, inputs = KERNELS[shape.kind], block.inputs
        self.units = nn.ModuleList()
        for place, (kernel, outputs) in enumerate(zip(kernels, block.widths, strict=True)):
            self.units.append(SharedConv(inputs, outputs, kernel, block.stride if place == kernels.index(3) else 1))
            inputs = outputs
        self.shortcut = SharedConv(block.inputs, block.outputs, 1, norm=self.normed or not block.padded)
        self.widths: list[Chosen] = []

    def forward(self, x: Tensor, mixed: bool) -> Tensor:
        """Map (N, C, H, W) to what the chosen widths make of it."""
        out = x
        for unit, chosen in zip(self.units[:-1], self.widths, strict=False):
            out = F.relu(unit(out, chosen))
        out = self.units[-1](out, self.widths[-1])
        if not self.padded:
            pooled = F.avg_pool2d(x, 2) if self.stride == 2 else x
            return F.relu(out + self.shortcut(pooled, self.widths[-1], norm=mixed))
        if x.shape[1] == out.shape[1]:
            return F.relu(out + x)
        if mixed:
            return F.relu(_on_common_channels(out, x))
        return F.relu(out + self.shortcut(x, self.widths[-1], norm=self.normed))

    def inherited(self, block: Block) -> Iterator[tuple[str, Tensor]]:
        """Yield the state of a block of these widths."""
        inputs = block.inputs
        for place, (unit, outputs) in enumerate(zip(self.units, block.widths, strict=True)):
            assert isinstance(unit, SharedConv)
            yield from ((f"units.{place}.{name}", value) for name, value in unit.inherited(inputs, outputs))
            inputs = outputs
        if block.projects:
            state = self.shortcut.inherited(block.inputs, block.outputs, self.normed)
            yield from ((f"shortcut.{name}", value) for name, value in state)


class ResNetShapesSupernet(Supernet):
    """All networks on one set of convolutions; the whole network is active at first.

    An active architecture computes what its own network does, so that any strategy can search with inherited weights.
    A mixture is the published forward pass, which differs in two points: where the widths at the ends of a block
    differ, its shortcut adds the channels that both have and keeps the others of the wider one, and the convolutions of
    shortcuts are followed by batch norms. The convolutions that single architectures have in such shortcuts are thus
    trained by methods that activate, and by no mixture: what TAS finds is to be trained from scratch.
    """

    space: ResNetShapesSpace

    def __init__(self, space: ResNetShapesSpace, task: Task) -> None:
        super().__init__(space, task)
        largest = space.largest()
        shape = space.shape(largest)
        self.stem = SharedConv(task.in_chans, shape.stem, 3)
        self.stages = nn.ModuleList(nn.ModuleList() for _ in shape.stages)
        for block in shape.blocks():
            self._stage(block.stage).append(SharedBlock(shape, block))
        self.classifier = nn.Linear(shape.last, task.num_outputs)
        initialise(self)
        self.expectation = ExpectedMacs(space, task)
        self.activate(largest)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of the active architecture or mixture for images (N, C, H, W)."""
        mixed = self.active is None
        x = F.relu(self.stem(images, self.stem_widths))
        for stage, depths in zip(self.stages, self.depths, strict=True):
            x = self._through(stage, x, depths, mixed)
        features = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return F.linear(features, self.classifier.weight[:, : features.shape[1]], self.classifier.bias)

    def _through(self, stage: nn.Module, x: Tensor, depths: Chosen, mixed: bool) -> Tensor:
        """Return the sum of what a stage gives at the chosen depths, brought to the widest of them."""
        assert isinstance(stage, nn.ModuleList)
        found = {}
        for depth, block in enumerate(stage[: max(depths)], 1):
            x = block(x, mixed)
            if depth in depths:
                found[depth] = x
        widest = max(each.shape[1] for each in found.values())
        return total(
            widened(found[depth], widest) if weight is None else widened(found[depth], widest) * weight
            for depth, weight in depths.items()
        )

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the state of `arch`'s stand-alone network out of the shared weights."""
        shape = self.space.shape(arch)
        found = {f"stem.{name}": value for name, value in self.stem.inherited(self.task.in_chans, shape.stem)}
        for block in shape.blocks():
            shared = self._stage(block.stage)[block.number]
            assert isinstance(shared, SharedBlock)
            place = f"stages.{block.stage}.{block.number}"
            found |= {f"{place}.{name}": value for name, value in shared.inherited(block)}
        found["classifier.weight"] = self.classifier.weight.detach()[:, : shape.last]
        found["classifier.bias"] = self.classifier.bias.detach()
        return found

    def mixtures(self) -> Mapping[str, tuple[Choice, ...]]:
        """Return all decisions: the width of each convolution, and the depth of each stage."""
        return {decision.name: decision.choices for decision in self.space.decisions}

    def expected_macs(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the MACs of one image in expectation over candidates that are drawn independently.

        As published, without the convolutions that are in shortcuts only because widths differ.
        """
        macs: Tensor = self.expectation(weights)
        return macs

    def _activate(self, arch: Architecture) -> None:
        self._choose({name: {int(choice): None} for name, choice in arch.items()})

    def _mix(self, weights: Mapping[str, Mapping[Choice, Tensor]]) -> None:
        found = {name: {int(choice): each for choice, each in row.items()} for name, row in weights.items()}
        self._choose(found)

    def _choose(self, chosen: Mapping[str, Chosen]) -> None:
        self.stem_widths: Chosen = chosen["stem"]
        self.depths: list[Chosen] = [chosen[depth_name(stage)] for stage in (1, 2, 3)]
        for stage, depths in enumerate(self.depths, 1):
            for number in range(1, max(depths) + 1):
                block = self._stage(stage - 1)[number - 1]
                assert isinstance(block, SharedBlock)
                block.widths = [chosen[conv_name(stage, number, conv)] for conv in range(1, self.space.convs + 1)]

    def _stage(self, number: int) -> nn.ModuleList:
        stage = self.stages[number]
        assert isinstance(stage, nn.ModuleList)
        return stage


def _on_common_channels(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum on the channels that both have, and the other channels of the wider one as they are."""
    narrow, wide = sorted((one, other), key=lambda each: each.shape[1])
    return wide + F.pad(narrow, (0, 0, 0, 0, 0, wide.shape[1] - narrow.shape[1]))
