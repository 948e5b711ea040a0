from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision, where
from spaces.space import Space, task_of
from spaces.supernet import Supernet


class Options(Config):
    pass


class Branches(Space):
    """Two layers, each a linear layer or nothing; the second may have a gain."""

    Config = Options
    default_task = task_of(num_outputs=3, in_chans=1, img_size=2)

    def _decisions(self) -> Sequence[Decision]:
        yes_no = ("linear", "none")
        return [
            Decision("first", yes_no),
            Decision("second", yes_no),
            Decision("gain", (1, 2), where("second", "linear")),
        ]

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return Chain(arch, task)

    def _supernet(self, task: Task) -> Supernet:
        return BranchesSupernet(self, task)


class Chain(nn.Module):
    def __init__(self, arch: Architecture, task: Task) -> None:
        super().__init__()
        size = task.in_chans * task.img_size**2
        self.first = nn.Linear(size, size) if arch["first"] == "linear" else None
        self.second = nn.Linear(size, size) if arch["second"] == "linear" else None
        self.norm = nn.BatchNorm1d(size)
        self.gain = arch.get("gain", 1)
        self.head = nn.Linear(size, task.num_outputs)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        x = self.first(x) if self.first else x
        x = self.gain * self.second(x) if self.second else x
        return self.head(self.norm(x))


class BranchesSupernet(Supernet):
    def __init__(self, space: Space, task: Task) -> None:
        super().__init__(space, task)
        self.chain = Chain(Architecture({"first": "linear", "second": "linear"}), task)

    def _activate(self, arch: Architecture) -> None:
        pass

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        unused = tuple(f"{name}." for name in ("first", "second") if arch[name] == "none")
        return {key: value for key, value in self.chain.state_dict().items() if not key.startswith(unused or ("-",))}

    def forward(self, images: Tensor) -> Tensor:
        assert self.active is not None
        x = images.flatten(1)
        x = self.chain.first(x) if self.active["first"] == "linear" else x
        x = self.active.number("gain") * self.chain.second(x) if self.active["second"] == "linear" else x
        return self.chain.head(self.chain.norm(x))


@pytest.fixture
def space() -> Branches:
    space = Branches(Options())
    space.name = "branches"
    return space


def test_extract_computes_what_the_active_architecture_computes(space: Branches) -> None:
    net, images = space.supernet(), torch.randn(4, 1, 2, 2)
    for arch in space:
        net.activate(arch)
        for training in (True, False):
            net.train(training)
            alone = net.extract()
            assert alone.training is training
            torch.testing.assert_close(alone(images), net(images))


def test_extract_is_a_copy(space: Branches) -> None:
    net = space.supernet()
    net.activate({"first": "linear", "second": "none"})
    alone = net.extract()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.zero_()
    alone.train()(torch.randn(4, 1, 2, 2))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_another_than_the_active_architecture_can_be_extracted(space: Branches) -> None:
    net, images = space.supernet().eval(), torch.randn(4, 1, 2, 2)
    net.activate({"first": "linear", "second": "none"})
    other = net.extract({"first": "none", "second": "linear", "gain": 2})
    assert net.active == {"first": "linear", "second": "none"}
    net.activate({"first": "none", "second": "linear", "gain": 2})
    torch.testing.assert_close(other(images), net(images))


def test_an_illegal_architecture_changes_nothing(space: Branches) -> None:
    net = space.supernet()
    net.activate({"first": "linear", "second": "none"})
    with pytest.raises(InputError, match="second: got 'conv'; allowed linear or none"):
        net.activate({"first": "none", "second": "conv"})
    assert net.active == {"first": "linear", "second": "none"}


def test_extract_needs_an_architecture(space: Branches) -> None:
    with pytest.raises(ValueError, match="activate an architecture first"):
        space.supernet().extract()


def test_the_supernet_serves_the_task_it_was_made_for(space: Branches) -> None:
    net = space.supernet(space.task(num_outputs=7, in_chans=2, img_size=3))
    net.activate({"first": "none", "second": "none"})
    assert net(torch.zeros(4, 2, 3, 3)).shape == net.extract()(torch.zeros(4, 2, 3, 3)).shape == (4, 7)


class MixedBranches(BranchesSupernet):
    mixed: Mapping[str, Mapping[Choice, Tensor]]

    def mixtures(self) -> dict[str, tuple[Choice, ...]]:
        return {decision.name: decision.choices for decision in self.space.decisions}

    def _mix(self, weights: Mapping[str, Mapping[Choice, Tensor]]) -> None:
        self.mixed = weights


def test_a_supernet_says_what_it_cannot_do(space: Branches) -> None:
    net = space.supernet()
    for call in (net.mixtures, lambda: net.mix({}), lambda: net.decode({})):
        with pytest.raises(InputError, match="space branches: its supernet cannot mix choices"):
            call()
    with pytest.raises(InputError, match="space branches: its supernet has no blocks"):
        net.blocks()
    with pytest.raises(InputError, match="space branches: its supernet cannot weigh the MACs"):
        net.expected_macs({})
    assert list(net.members(space.check({"first": "none", "second": "none"}))) == [net]


def test_a_mixture_ends_with_the_next_activation_and_is_no_architecture(space: Branches) -> None:
    net = MixedBranches(space, space.task())
    net.activate({"first": "none", "second": "none"})
    weights = {"gain": torch.tensor([0.3, 0]), "first": torch.tensor([0, 0.0]), "second": torch.tensor([0.5, -1])}
    net.mix(weights)
    assert {name: list(chosen) for name, chosen in net.mixed.items()} == {
        "first": [], "second": ["linear", "none"], "gain": [1]
    }  # fmt: skip
    assert list(net.mixed) == ["first", "second", "gain"] and net.active is None
    with pytest.raises(ValueError, match="activate an architecture"):
        net.extract()
    with pytest.raises(ValueError, match=r"'second': \(2,\).* got .*'second': \(3,\)"):
        net.mix(weights | {"second": torch.rand(3)})
    with pytest.raises(ValueError, match="are needed"):
        net.mix({"first": torch.rand(2)})


def test_strengths_stand_for_their_strongest_choices_where_they_are_taken(space: Branches) -> None:
    net = MixedBranches(space, space.task())
    strengths = {"first": torch.tensor([1.0, 2.0]), "second": torch.tensor([0.5, 0.5]), "gain": torch.tensor([0, 1.0])}
    assert net.decode(strengths) == {"first": "none", "second": "linear", "gain": 2}
    assert net.decode(strengths | {"second": torch.tensor([0.1, 0.5])}) == {"first": "none", "second": "none"}
