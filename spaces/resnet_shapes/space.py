"""The space that TAS searches: how wide each convolution of a CIFAR ResNet is, and how deep each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from torch import nn

import compress.core.config
from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision, where
from spaces.layers import Cost, Layer, conv, linear
from spaces.registry import spaces
from spaces.resnet_shapes.codes import conv_name, depth_name, from_code, stages_of, to_text
from spaces.resnet_shapes.network import ShapedResNet
from spaces.resnet_shapes.presets import PRESETS
from spaces.resnet_shapes.shape import (
    CHANNELS,
    EXPANSION,
    KERNELS,
    Block,
    BlockKind,
    Shape,
    blocks_per_stage,
    depth_choices,
    width_choices,
)
from spaces.resnet_shapes.supernet import ResNetShapesSupernet
from spaces.space import Preset, Space, task_of


class ResNetShapesConfig(compress.core.config.Config):
    """Which network is narrowed and shortened."""

    depth: int = Field(56, le=1001, description="layers of the whole network: 6n + 2, or 9n + 2 with bottlenecks")
    block: BlockKind = Field("basic", description="basic, or bottleneck as ResNet-164 has it")

    @model_validator(mode="after")
    def _whole_blocks(self) -> Self:
        blocks_per_stage(self.depth, self.block)
        return self


@spaces.register("resnet_shapes")
class ResNetShapesSpace(Space):
    """All networks that are a ResNet of He et al. for CIFAR with narrower convolutions and shorter stages.

    Dong and Yang, "Network Pruning via Transformable Architecture Search" (TAS). Every convolution has one of eight
    widths, 30 % to 100 % of its channels; stages have 1, 2 or 3 blocks, or an odd number of them, or all.
    """

    Config: ClassVar[type[compress.core.config.Config]] = ResNetShapesConfig
    config: ResNetShapesConfig
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    default_task = task_of(num_outputs=10, in_chans=3, img_size=32)

    def __init__(self, config: ResNetShapesConfig) -> None:
        self.blocks = blocks_per_stage(config.depth, config.block)
        self.convs = len(KERNELS[config.block])
        super().__init__(config)

    def _decisions(self) -> Sequence[Decision]:
        found = [Decision("stem", width_choices(CHANNELS[0]))]
        depths = depth_choices(self.blocks)
        for stage, channels in enumerate(CHANNELS, 1):
            found.append(Decision(depth_name(stage), depths))
            for block in range(1, self.blocks + 1):
                deep = [depth for depth in depths if depth >= block]
                when = where(depth_name(stage), *deep) if len(deep) < len(depths) else None
                for number in range(1, self.convs + 1):
                    wide = channels * EXPANSION[self.config.block] if number == self.convs else channels
                    found.append(Decision(conv_name(stage, block, number), width_choices(wide), when))
        return found

    def shape(self, arch: Mapping[str, Choice]) -> Shape:
        """Return how wide all parts of a checked `arch` are."""
        stages = stages_of(arch, self.convs)
        return Shape(self.config.block, int(arch["stem"]), tuple(tuple(map(tuple, blocks)) for blocks in stages))

    def largest(self) -> Architecture:
        """Return the network that is narrowed and shortened, whole."""
        return self.check({each.name: max(each.choices) for each in self.decisions})

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of `16/9-16,11-16/...`, or of the lists (xblocks, xchannels) of a published file."""
        return from_code(code, self.blocks, self.convs)

    def to_code(self, arch: Architecture) -> str:
        """Return the widths as text: the stem's, and after a stroke each stage's, block by block."""
        return to_text(arch.number("stem"), stages_of(arch, self.convs))

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        refuse_odd(task)
        return ShapedResNet(self.shape(arch), task)

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        refuse_odd(task)
        shape, size = self.shape(arch), task.img_size
        stem = conv(task.in_chans, shape.stem, 3, size)
        rows = [Layer("stem", "conv k3", shape.stem, size, 1, stem.params, stem.macs)]
        for block in shape.blocks():
            cost = _block_cost(shape, block, size)
            size //= block.stride
            name = f"stage{block.stage + 1}.block{block.number + 1}"
            operation = f"{shape.kind} {'-'.join(map(str, block.widths))}{' projected' if block.projects else ''}"
            rows.append(Layer(name, operation, block.outputs, size, block.stride, cost.params, cost.macs))
        head = linear(shape.last, task.num_outputs)
        return [*rows, Layer("classifier", "pool, linear", task.num_outputs, 1, 1, head.params, head.macs)]

    def _supernet(self, task: Task) -> ResNetShapesSupernet:
        refuse_odd(task)
        return ResNetShapesSupernet(self, task)


def _block_cost(shape: Shape, block: Block, size: int) -> Cost:
    """Return the cost of a block that gets maps of `size` x `size`."""
    cost, inputs, kernels = Cost(), block.inputs, KERNELS[shape.kind]
    for place, (kernel, outputs) in enumerate(zip(kernels, block.widths, strict=True)):
        cost += conv(inputs, outputs, kernel, size // block.stride if place >= kernels.index(3) else size)
        inputs = outputs
    if block.projects:
        cost += conv(block.inputs, block.outputs, 1, size // block.stride, norm=shape.normed_shortcut(block))
    return cost


def refuse_odd(task: Task) -> None:
    """Refuse images that cannot be halved twice: the shortcut of a block would not fit its convolutions."""
    if task.img_size % 4:
        raise InputError(f"space resnet_shapes: the image side must be a multiple of 4; got {task.img_size}")
