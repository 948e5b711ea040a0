"""Two layers in a row, each of which is searched: a space whose supernet mixes, small enough for exact checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.config import Config
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.candidates import AdditiveMacs, Candidates
from spaces.space import Space
from spaces.supernet import Supernet

FIRST = ("skip_connect", "blind", "conv3", "conv1")
SECOND = ("blind", "conv1", "skip_connect")


class Blind(nn.Module):
    """Nothing of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Noise(nn.Module):
    """What no search should find: nothing of the input, and the less of it the better."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.randn_like(x)


PLAIN: dict[str, Callable[[], nn.Module]] = {"blind": Blind, "noise": Noise, "skip_connect": nn.Identity}


def operation(name: str, channels: int) -> nn.Module:
    if name in PLAIN:
        return PLAIN[name]()
    conv = nn.Conv2d(channels, channels, int(name[-1]), padding="same", bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, affine=False))


class Toy(Space):
    Config = Config

    def __init__(self, first: Sequence[str] = FIRST, second: Sequence[str] = SECOND) -> None:
        self.operations = {"first": tuple(first), "second": tuple(second)}
        super().__init__(Config())
        self.name = "toy"
        self.default_task = self.task(4, 3, 8)

    def _decisions(self) -> Sequence[Decision]:
        return [Decision(name, choices) for name, choices in self.operations.items()]

    def network(self, task: Task, make: Callable[[str, int], nn.Module]) -> nn.Sequential:
        layers = {name: make(name, task.in_chans) for name in self.operations}
        head = nn.Linear(task.in_chans * 4, task.num_outputs)
        return nn.Sequential(*layers.values(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return self.network(task, lambda name, channels: operation(arch.text(name), channels))

    def _supernet(self, task: Task) -> Supernet:
        return ToySupernet(self, task)


class ToySupernet(Supernet):
    space: Toy

    def __init__(self, space: Toy, task: Task) -> None:
        super().__init__(space, task)
        self.network = space.network(
            task,
            lambda name, channels: Candidates({each: operation(each, channels) for each in space.operations[name]}),
        )

    def layer(self, name: str) -> Candidates:
        layer = self.network[list(self.space.operations).index(name)]
        assert isinstance(layer, Candidates)
        return layer

    def _activate(self, arch: Architecture) -> None:
        for name in self.space.operations:
            self.layer(name).choose(arch.text(name))

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def mixtures(self) -> Mapping[str, tuple[Choice, ...]]:
        return dict(self.space.operations)

    def _mix(self, weights: Mapping[str, Mapping[Choice, Tensor]]) -> None:
        for name, parts in weights.items():
            self.layer(name).mix({str(choice): weight for choice, weight in parts.items()})

    @cached_property
    def _macs(self) -> Any:
        return AdditiveMacs(self.space, self.task)

    def expected_macs(self, weights: Mapping[str, Tensor]) -> Tensor:
        return self._macs.expected(weights)
