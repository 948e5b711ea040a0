"""The size space of NATS-Bench: the channels at five positions of a fixed CIFAR network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import nn

import compress.core.config
from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.layers import Cost, Layer, conv, linear
from spaces.nats_size.network import REDUCTIONS, NATSNetwork
from spaces.nats_size.supernet import NATSSizeSupernet
from spaces.registry import spaces
from spaces.space import Preset, Space, task_of
from spaces.supernet import Supernet

CHANNELS = (8, 16, 24, 32, 40, 48, 56, 64)
_BLOCKS = tuple(f"block{number}" for number in range(1, 6))


class NATSSizeConfig(compress.core.config.Config):
    """The size space has no options."""


@spaces.register("nats_size")
class NATSSizeSpace(Space):
    """32,768 networks of one topology, for which NATS-Bench has accuracies on three data sets.

    Dong, Liu, Musial and Gabrys, "NATS-Bench: Benchmarking NAS Algorithms for Architecture Topology and Size". Blocks
    1, 3 and 5 are cells, blocks 2 and 4 halve the map. The published code lists the channels: `64:40:48:64:56`.
    """

    Config: ClassVar[type[compress.core.config.Config]] = NATSSizeConfig
    presets: ClassVar[Mapping[str, Preset]] = {
        "largest": Preset("64 channels everywhere", code="64:64:64:64:64"),
        "best_cifar10": Preset("the most accurate on CIFAR-10 in the benchmark: 93.65 %", code="64:64:56:64:24"),
    }
    default_task = task_of(num_outputs=10, in_chans=3, img_size=32)

    def _decisions(self) -> Sequence[Decision]:
        return [Decision(name, CHANNELS) for name in _BLOCKS]

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of `64:40:48:64:56`, or of the five numbers as a list."""
        parts = code.split(":") if isinstance(code, str) else code
        if not isinstance(parts, (list, tuple)) or len(parts) != len(_BLOCKS):
            raise InputError(
                f"space nats_size: a code has five numbers of channels, such as 64:40:48:64:56; got {code!r}"
            )
        numbers = (int(part) if isinstance(part, str) and part.strip().isdecimal() else part for part in parts)
        return dict(zip(_BLOCKS, numbers, strict=True))

    def to_code(self, arch: Architecture) -> str:
        """Return the channels as NATS-Bench writes them."""
        return ":".join(str(channels) for channels in self.channels(arch))

    def channels(self, arch: Architecture) -> tuple[int, ...]:
        """Return the number of channels at each position."""
        return tuple(arch.number(name) for name in _BLOCKS)

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        _refuse_odd(task)
        return NATSNetwork(task.in_chans, self.channels(arch), task.num_outputs)

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        _refuse_odd(task)
        channels, size = self.channels(arch), task.img_size
        stem = conv(task.in_chans, channels[0], 3, size)
        rows = [Layer("stem", "conv k3", channels[0], size, 1, stem.params, stem.macs)]
        for place, (inputs, outputs) in enumerate(pairwise((channels[0], *channels))):
            stride = 2 if place in REDUCTIONS else 1
            size //= stride
            cost = _reduction(inputs, outputs, size) if stride == 2 else _cell(inputs, outputs, size)
            operation = "residual block" if stride == 2 else "cell"
            rows.append(Layer(_BLOCKS[place], operation, outputs, size, stride, cost.params, cost.macs))
        head = Cost(params=2 * channels[-1]) + linear(channels[-1], task.num_outputs)
        return [*rows, Layer("classifier", "norm, pool, linear", task.num_outputs, 1, 1, head.params, head.macs)]

    def _supernet(self, task: Task) -> Supernet:
        _refuse_odd(task)
        return NATSSizeSupernet(self, task)


def _cell(inputs: int, outputs: int, size: int) -> Cost:
    cost = conv(inputs, outputs, 3, size) + conv(inputs, outputs, 3, size)
    for _ in range(3):
        cost += conv(outputs, outputs, 3, size)
    return cost if inputs == outputs else cost + conv(inputs, outputs, 1, size)


def _reduction(inputs: int, outputs: int, size: int) -> Cost:
    main = conv(inputs, outputs, 3, size) + conv(outputs, outputs, 3, size)
    return main + conv(inputs, outputs, 1, size, norm=False)


def _refuse_odd(task: Task) -> None:
    """Refuse images that cannot be halved twice: the shortcut of a reduction would not fit its main branch."""
    if task.img_size % 4:
        raise InputError(f"space nats_size: the image side must be a multiple of 4; got {task.img_size}")
