"""A third party's space is tried out before a search spends time on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from torch import nn

from compress.core.config import Config
from compress.core.errors import InputError
from evaluators.tasks import DEFAULT, Task
from search.space import fitted
from spaces.architecture import Architecture, Decision
from spaces.layers import Layer
from spaces.space import Space, task_of

count = itertools.count(4)


def net(width: int, task: Task, outputs: int | None = None) -> nn.Module:
    pooled = (nn.Conv2d(task.in_chans, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*pooled, nn.Linear(width, outputs or task.num_outputs))


class Theirs(Space):
    Config = Config
    name = "theirs"
    default_task = task_of(5, 3, 8)
    make: Callable[[int, Task], nn.Module] = staticmethod(net)
    rows: list[Layer] | None = None

    def _decisions(self) -> list[Decision]:
        return [Decision("width", (4, 8))]

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return self.make(arch.number("width"), task)

    def _layers(self, arch: Architecture, task: Task) -> list[Layer] | None:
        return self.rows


def test_a_space_that_builds_by_its_choices_alone_is_taken() -> None:
    assert fitted(Theirs(Config()), None, DEFAULT, 0) is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda width, task: net(next(count), task), "another network each time"),
        (lambda width, task: None, "no network that works: AttributeError"),
        (lambda width, task: {}[width], "no network that works: KeyError"),
        (lambda width, task: nn.Linear(width + 1, 5), "no network that works: RuntimeError"),
        (lambda width, task: nn.Conv2d(3, width, 1), "a network that does not give logits"),
        (lambda width, task: net(width, task, 7), "a network with 7 outputs; wanted 5 classes"),
    ],
)
def test_a_space_that_builds_something_else_is_refused(make: Callable[[int, Task], nn.Module], says: str) -> None:
    space = Theirs(Config())
    space.make = make
    with pytest.raises(InputError, match=rf"^search.space: theirs builds of \{{'width': [48]\}} {says}"):
        fitted(space, None, DEFAULT, 0)


def test_a_space_whose_layers_are_not_those_of_its_networks_is_refused() -> None:
    space = Theirs(Config())
    space.rows = [Layer("only", "conv", 4, 8, 1, 10, 20)]
    with pytest.raises(InputError, match="by its _layers it would be"):
        fitted(space, None, DEFAULT, 0)
