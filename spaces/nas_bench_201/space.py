"""The space of NAS-Bench-201: one operation on each of the six edges of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from compress.core.config import Config
from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.drawing import draw_cells
from spaces.layers import Cost, Layer, conv, linear
from spaces.nas_bench_201.canonical import smallest_equal
from spaces.nas_bench_201.code import EDGES, OPERATIONS, decode, edge_name, encode
from spaces.nas_bench_201.network import STAGES, CellNetwork, MakeEdge, operation
from spaces.nas_bench_201.pictures import cell_graph, network_graph, space_graph
from spaces.nas_bench_201.supernet import NASBench201Supernet
from spaces.registry import spaces
from spaces.space import Preset, Space, task_of
from spaces.supernet import Supernet


class NASBench201Config(Config):
    """Size of the networks; the defaults are the benchmark's."""

    channels: int = Field(16, ge=1, description="channels of the stem and the first stage; every stage doubles them")
    cells: int = Field(5, ge=1, description="cells in each of the three stages")


@spaces.register("nas_bench_201")
class NASBench201Space(Space):
    """15,625 cells, all of them trained in NAS-Bench-201 and in the topology space of NATS-Bench.

    The published code is a text: `|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|`.
    Convolutions that the output does not depend on are built, and cost what they cost, as in the benchmark.
    """

    Config = NASBench201Config
    default_task = task_of(num_outputs=10, in_chans=3, img_size=32)
    presets: ClassVar[Mapping[str, Preset]] = {
        "best-cifar10": Preset(
            "one of the two most accurate on CIFAR-10: 94.37 %",
            code="|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|",
        ),
        "best-cifar100": Preset(
            "the most accurate on CIFAR-100: 73.51 %; 94.36 % on CIFAR-10; the cell of space nats_size",
            code="|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|",
        ),
        "resnet": Preset(
            "a residual block of two convolutions",
            code="|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|",
        ),
        "largest": Preset(
            "3x3 convolutions on all edges",
            code="|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
        ),
        "digits": Preset(
            "the space, small enough to be searched on 32-pixel digits in minutes", {"channels": 8, "cells": 1}
        ),
    }
    config: NASBench201Config

    def _decisions(self) -> Sequence[Decision]:
        return [Decision(edge_name(*ends), OPERATIONS) for ends in EDGES]

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of the benchmark's text."""
        return decode(code)

    def to_code(self, arch: Mapping[str, Choice]) -> str:
        """Return the benchmark's text."""
        return encode(self.check(arch))

    def _canonical(self, arch: Architecture) -> Architecture:
        """Return the first of the cells that are the same network, dead convolutions included."""
        names = [decision.name for decision in self.decisions]
        return Architecture(dict(zip(names, smallest_equal(tuple(arch.text(name) for name in names)), strict=True)))

    def draw(self, arch: Mapping[str, Choice] | None = None, img_size: int | None = None) -> str:
        """Return an SVG of the cell, or of what is open in it, beside the network."""
        config = self.config
        title = f"NAS-Bench-201, N = {config.cells}, C = {config.channels}"
        cells = network_graph(config.channels, config.cells)
        if arch is None:
            return draw_cells(title, f"{self.count():,} cells", [space_graph(), cells])
        task = self.task(img_size=img_size)
        cost = self.cost(arch, task)
        subtitle = f"{cost['params'] / 1e6:.3f} M parameters, {cost['macs'] / 1e6:.1f} M MACs at {task.img_size} pixels"
        return draw_cells(title, subtitle, [cell_graph(self.check(arch)), cells])

    def network(self, task: Task, edge: MakeEdge) -> CellNetwork:
        """Return the network with what `edge` makes on the edges of its cells."""
        _refuse_odd(task)
        return CellNetwork(task.in_chans, self.config.channels, self.config.cells, task.num_outputs, edge)

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return self.network(task, lambda name, channels: operation(arch.text(name), channels))

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        _refuse_odd(task)
        channels, size = self.config.channels, task.img_size
        stem = conv(task.in_chans, channels, 3, size)
        rows = [Layer("stem", "conv k3", channels, size, 1, stem.params, stem.macs)]
        for stage in range(STAGES):
            if stage:
                channels, size = 2 * channels, size // 2
                main = conv(channels // 2, channels, 3, size) + conv(channels, channels, 3, size)
                cost = main + conv(channels // 2, channels, 1, size, norm=False)
                rows.append(Layer(f"reduction{stage}", "residual block", channels, size, 2, cost.params, cost.macs))
            cost = Cost()
            for kernel, name in ((1, "nor_conv_1x1"), (3, "nor_conv_3x3")):
                for _ in range([*arch.values()].count(name)):
                    cost += conv(channels, channels, kernel, size)
            rows += [
                Layer(f"stage{stage + 1}.cell{cell}", "cell", channels, size, 1, cost.params, cost.macs)
                for cell in range(1, self.config.cells + 1)
            ]
        head = Cost(params=2 * channels) + linear(channels, task.num_outputs)
        return [*rows, Layer("classifier", "norm, pool, linear", task.num_outputs, 1, 1, head.params, head.macs)]

    def _supernet(self, task: Task) -> Supernet:
        return NASBench201Supernet(self, task)


def _refuse_odd(task: Task) -> None:
    """Refuse images that cannot be halved twice: the shortcut of a reduction would not fit its main branch."""
    if task.img_size % 4:
        raise InputError(f"space nas_bench_201: the image side must be a multiple of 4; got {task.img_size}")
