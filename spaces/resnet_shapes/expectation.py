"""MACs of the supernet in expectation, differentiable in the probabilities (TAS, section 3.2)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.resnet_shapes.codes import depth_name
from spaces.resnet_shapes.shape import KERNELS

if TYPE_CHECKING:
    from spaces.resnet_shapes.space import ResNetShapesSpace


class ExpectedMacs(nn.Module):
    """The sum over convolutions of kernel² · H · W · E[inputs] · E[outputs] · P(the stage is as deep).

    Widths are drawn independently, so that this is the expectation of the products. A stage hands on what it is wide at
    its depth, whichever that is: E[inputs] of the next block is a mean over depths as well. (The published code has the
    width at full depth there, which is 1.5 to 3.4 % off the networks that it finds.)
    """

    inputs: Tensor
    outputs: Tensor
    factors: Tensor
    reach: Tensor
    ends: Tensor
    widths: Tensor
    depth_names: tuple[str, ...]

    def __init__(self, space: ResNetShapesSpace, task: Task) -> None:
        super().__init__()
        shape = space.shape(space.largest())
        depths = tuple(int(depth) for depth in space.decisions[1].choices)
        self.depth_names = tuple(depth_name(stage) for stage in (1, 2, 3))
        names = [decision.name for decision in space.decisions if decision.name not in self.depth_names]
        self.names = tuple(names)
        self.fixed = (float(task.in_chans), float(task.num_outputs))
        # Channels are numbered: of the images, of the logits, of every convolution in its order, of every stage's end.
        first, stage_end = len(self.fixed), len(self.fixed) + len(names)
        always = 3 * len(depths)  # the place of probability 1, behind those that a stage is as deep
        rows = [(0, first, 9 * task.img_size**2, always)]
        ends, number, size = [[0] * len(depths) for _ in shape.stages], first + 1, task.img_size
        for block in shape.blocks():
            start = number - 1 if block.number else (first if block.stage == 0 else stage_end + block.stage - 1)
            reached = block.stage * len(depths) + bisect_left(depths, block.number + 1)
            source, kernels = start, KERNELS[shape.kind]
            for place, kernel in enumerate(kernels):
                size //= block.stride if place == kernels.index(3) else 1
                rows.append((source, number, kernel**2 * size**2, reached))
                source, number = number, number + 1
            if not block.padded:
                rows.append((start, source, size**2, reached))
            if block.number + 1 in depths:
                ends[block.stage][depths.index(block.number + 1)] = source - first
        rows.append((stage_end + 2, 1, 1, always))
        columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
        for name, column in zip(("inputs", "outputs", "factors", "reach"), columns, strict=True):
            self.register_buffer(name, column, persistent=False)
        self.register_buffer("ends", torch.tensor(ends), persistent=False)
        choices = [decision.choices for decision in space.decisions if decision.name in names]
        self.register_buffer("widths", torch.tensor(choices), persistent=False)

    def forward(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the expectation, a scalar, for the probabilities of every decision's choices."""
        rows = torch.stack([weights[name] for name in self.names])
        wide = (rows * self.widths).sum(1)
        deep = torch.stack([weights[name] for name in self.depth_names])
        ends = (deep * wide[self.ends]).sum(1)
        channels = torch.cat([wide.new_tensor(self.fixed), wide, ends])
        as_deep = deep.flip(1).cumsum(1).flip(1).flatten()
        reach = torch.cat([as_deep, as_deep.new_ones(1)])
        return (self.factors * channels[self.inputs] * channels[self.outputs] * reach[self.reach]).sum()
