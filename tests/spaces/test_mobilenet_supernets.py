"""The supernets of MnasNet's space and of NAS-Bench-Macro against the networks that are cut out of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.core.meta import without_storage
from compress.export.exporters import ExportConfig, export
from compress.testing.spaces import enliven
from evaluators.cost import count_macs, count_params
from spaces.registry import create
from spaces.space import Space
from spaces.supernet import Supernet

SPACES: dict[str, dict[str, Any]] = {
    "mnasnet": {"widths": (8, 16, 24), "depths": (1, 2, 2), "strides": (1, 2, 2), "stem": 8, "last_conv": 64},
    "nas_bench_macro": {"stem": 8},
}


@pytest.fixture(scope="module", params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return create(request.param, SPACES[request.param])


@pytest.fixture
def supernet(space: Space) -> Supernet:
    torch.manual_seed(0)
    supernet = space.supernet(space.task(10, 3, 16))
    enliven(supernet)
    return supernet


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_predicted_cost_is_the_counted_one(space: Space) -> None:
    generator = random.Random(0)
    for _ in range(20):
        arch, size = space.sample(generator), generator.choice((16, 33))
        with without_storage():
            network = space.build(arch, space.task(7, 1, size)).eval()
            counted = {"params": count_params(network)[0], "macs": count_macs(network, torch.empty(1, 1, size, size))}
        assert space.cost(arch, space.task(7, 1, size)) == counted


@pytest.mark.parametrize("training", [False, True])
def test_active_supernet_computes_what_is_cut_out(space: Space, supernet: Supernet, training: bool) -> None:
    supernet.train(training)
    generator = random.Random(1)
    for _ in range(20):
        arch = space.sample(generator)
        supernet.activate(arch)
        network = supernet.extract(arch)
        assert network.training is training
        torch.testing.assert_close(supernet(images()), network(images()), atol=1e-5, rtol=1e-5)
        if training:  # both kept the same running statistics
            kept = {name: value for name, value in network.state_dict().items() if "running" in name}
            shared = supernet.inherited(space.check(arch))
            torch.testing.assert_close({name: shared[name] for name in kept}, kept)


def test_what_the_active_network_does_not_use_has_no_gradient(space: Space, supernet: Supernet) -> None:
    arch = first_choices(space)
    supernet.activate(arch)
    supernet(images()).sum().backward()
    used = {name for name, parameter in supernet.named_parameters() if parameter.grad is not None}
    assert len(used) == len(list(space.build(arch, space.task(10, 3, 16)).parameters()))
    assert len(used) < len(list(supernet.parameters()))


def first_choices(space: Space) -> Mapping[str, Any]:
    return space.check({decision.name: decision.choices[0] for decision in space.decisions})


def test_a_cut_out_network_shares_nothing(space: Space, supernet: Supernet) -> None:
    arch = space.sample(random.Random(2))
    network = supernet.extract(arch)
    shared = {parameter.untyped_storage().data_ptr() for parameter in supernet.parameters()}
    assert shared.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in network.parameters())


def test_training_one_network_moves_what_others_inherit(space: Space, supernet: Supernet) -> None:
    generator = random.Random(3)
    arch, other = space.sample(generator), space.sample(generator)
    supernet.eval().activate(other)
    before = supernet(images()).detach()
    supernet.train().activate(arch)
    optimizer = torch.optim.SGD(supernet.parameters(), 0.1)
    supernet(images(4)).square().sum().backward()
    optimizer.step()
    supernet.eval().activate(other)
    assert not torch.equal(supernet(images()), before)


def test_networks_export_with_parity(space: Space, supernet: Supernet, tmp_path: Path) -> None:
    generator, config = random.Random(4), ExportConfig(exporter="torchscript")
    for _ in range(3):
        network = supernet.extract(space.sample(generator))
        assert export(network, images(), tmp_path / "network.onnx", config).parity_max_rel < 1e-4
