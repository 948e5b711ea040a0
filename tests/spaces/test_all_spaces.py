"""What every space owes its users, checked on small cases of each; a new space needs an entry in CASES."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.meta import without_storage
from compress.testing.spaces import (
    check_canonical,
    check_codes,
    check_cost,
    check_draws,
    check_moves,
    check_network,
    check_supernet,
    enliven,
)
from evaluators.tasks import Task
from evaluators.tasks.detection import DetectionConfig
from evaluators.tasks.segmentation import SegmentationConfig
from spaces.architecture import Architecture
from spaces.registry import create, spaces
from spaces.space import Space, task_of
from spaces.supernet import Supernet

FEW = 4
ARCHITECTURES = 50
BUILT = 24
SHARED = 12
MUTATIONS = 100_000
ENOUGH_TO_LIST = 5_000
SMALL = task_of(num_outputs=5, in_chans=2, img_size=32)
TINY = task_of(num_outputs=5, in_chans=2, img_size=16)


@dataclass(frozen=True)
class Case:
    """A small member of a space, and what its networks are built for here."""

    space: str
    options: dict[str, Any] = field(default_factory=dict)
    task: Task = SMALL
    note: str = ""

    @property
    def id(self) -> str:
        return f"{self.space}-{self.note}" if self.note else self.space


WITHOUT_NETWORKS = {"table"}  # rows of a file of results
CASES = [
    Case("nasnet", {"cells_per_stage": 1, "filters": 4}),
    Case(
        "nasnet",
        {"cells_per_stage": 1, "filters": 8, "stem": "imagenet", "stem_channels": 4, "wiring": "large"},
        task_of(5, 3, 64),
        "imagenet",
    ),
    Case("mobilenetv3", {"skeleton": "tiny", "dataset": "cifar", "strides": (2, 1, 1, 2, 2)}),
    Case(
        "mobilenetv3",
        {"skeleton": "tiny", "widths": (0.5, 1.0), "resolutions": (24, 32), "se": "searched", "kernels": (3, 5, 7)},
        note="elastic",
    ),
    Case("mnasnet", {"widths": (8, 16, 24), "depths": (1, 2, 2), "strides": (1, 2, 2), "stem": 8, "last_conv": 32}),
    Case("nas_bench_macro", {"stem": 4, "depths": (2, 2, 2)}),
    Case(
        "hytra",
        {"layers": 4, "blocks": 2, "channels": (16, 32, 64), "head_dim": 8, "stem": "cifar", "stem_channels": 16},
    ),
    Case(
        "hytra",
        {
            "layers": 6, "blocks": 2, "channels": (16, 32, 64), "head_dim": 8, "stem_channels": 16, "se": True,
            "version": "retrain",
        },
        task_of(5, 2, 64),
        "retrain",
    ),
    Case("pooling"),
    Case("pooling", {"backbone": "timm:resnet10t", "halvings": 2}, task_of(5, 3, 64), "timm"),
    Case("channels", {"depth": True}, TINY),
    Case("n2n", task=TINY),
    Case("nats_size", task=TINY),
    Case("resnet_shapes", {"depth": 14}, TINY),
    Case("resnet_shapes", {"depth": 20, "block": "bottleneck"}, TINY, "bottleneck"),
    Case("nas_bench_201", {"channels": 4, "cells": 1}, TINY),
    Case("darts", {"channels": 4, "layers": 3}, TINY),
    Case(
        "lraspp",
        {
            "backbone": {"skeleton": "tiny", "widths": (0.5, 1.0), "strides": (2, 1, 2, 2, 2)},
            "features": (8, 16), "output_stride": 8, "half_tail": True,
        },
        SegmentationConfig().bind(5, (2, 32, 32)),
    ),
    Case("leyolo", {"backbone": {"width": 0.25, "depths": (1, 2)}}, DetectionConfig().bind(5, (3, 64, 64))),
]  # fmt: skip


def parametrised(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


many = pytest.mark.parametrize("part", ["few", pytest.param("many", marks=pytest.mark.slow)])
"""The first architectures in a quick run, the others of a space, over all its cases, in a whole one."""


@cache
def opened(name: str, options: str) -> Space:
    return create(name, json.loads(options))


def space_of(case: Case) -> Space:
    return opened(case.space, json.dumps(case.options))


def samples(case: Case, count: int, seed: int = 0) -> list[Architecture]:
    generator = random.Random(seed)
    return [space_of(case).sample(generator) for _ in range(count)]


def part_of(case: Case, part: str, count: int) -> list[Architecture]:
    """The first few architectures of a case, or those that follow: with all cases of a space `count`."""
    each = -(-count // sum(other.space == case.space for other in CASES))
    return samples(case, each)[:FEW] if part == "few" else samples(case, each)[FEW:]


def images_for(case: Case, arch: Architecture, count: int = 4) -> Tensor:
    size = space_of(case).input_size(arch, case.task.img_size)
    return torch.randn(count, case.task.in_chans, size, size)


@pytest.fixture
def double() -> Iterator[None]:
    """Compute in double precision, where equal means equal and not a matter of the order of sums."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@cache
def living(id: str) -> Supernet | str:
    """The supernet of a case, with statistics and affine parameters that differ from their start, or why there is none.

    Several tests take it: each sets its mode, and what it changes for a moment it restores.
    """
    case = next(each for each in CASES if each.id == id)
    try:
        net = space_of(case).supernet(case.task)
    except InputError as error:
        return str(error)
    enliven(net)
    return net


def supernet_of(case: Case) -> Supernet:
    """The supernet of a case; without one the test is skipped."""
    net = living(case.id)
    if isinstance(net, str):
        pytest.skip(net)
    return net


def logits_of(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def assert_close(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert torch.isfinite(expected).all()
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-3)


def test_every_space_is_checked_here() -> None:
    assert {case.space for case in CASES} | WITHOUT_NETWORKS == set(spaces.names())


@parametrised(CASES)
def test_architectures_survive_json_and_published_codes(case: Case) -> None:
    for arch in samples(case, ARCHITECTURES):
        check_codes(space_of(case), arch)


@parametrised(CASES)
def test_canonical_form_is_one_encoding_of_the_same_network(case: Case) -> None:
    for arch in samples(case, ARCHITECTURES):
        check_canonical(space_of(case), arch, case.task)


@parametrised(CASES)
def test_counts_what_it_lists_and_draws_it_uniformly(case: Case) -> None:
    space = space_of(case)
    count = space.count()
    check_draws(space, samples(case, ARCHITECTURES), ENOUGH_TO_LIST)
    if count < 500:
        drawn = samples(case, 50 * count)
        assert stats.chisquare([drawn.count(arch) for arch in space]).pvalue > 1e-4


def walk(case: Case, steps: int) -> None:
    space, generator = space_of(case), random.Random(1)
    arch = space.sample(generator)
    for _ in range(steps):
        changed = space.mutate(arch, generator)
        assert changed != arch and space.check(dict(changed)) == changed
        arch = changed


@parametrised(CASES)
def test_mutations_and_neighbours_stay_in_the_space(case: Case) -> None:
    check_moves(space_of(case), steps=200, parts=ARCHITECTURES)


@pytest.mark.slow
@parametrised(CASES)
def test_a_hundred_thousand_mutations_never_leave_a_space(case: Case) -> None:
    walk(case, -(-MUTATIONS // len(CASES)))


@many
@parametrised(CASES)
def test_predicted_cost_is_that_of_the_built_network(case: Case, part: str) -> None:
    for arch in part_of(case, part, BUILT):
        check_cost(space_of(case), arch, case.task)


@parametrised(CASES)
def test_networks_are_plain_modules_that_map_images_to_logits(case: Case) -> None:
    for arch in samples(case, 2):
        check_network(space_of(case), arch, case.task)


@many
@parametrised(CASES)
def test_the_active_supernet_computes_what_the_extracted_network_computes(case: Case, part: str, double: None) -> None:
    net = supernet_of(case)
    for arch in part_of(case, part, SHARED):
        check_supernet(net, arch, images_for(case, arch))


@parametrised(CASES)
def test_statistics_move_in_the_supernet_as_in_the_extracted_network(case: Case, double: None) -> None:
    net = supernet_of(case)
    for arch in samples(case, 2):
        images = images_for(case, arch)
        net.activate(arch)
        alone = net.train().extract()
        with torch.no_grad():
            net(images), alone(images)
            expected = net.eval().inherited(net.space.check(arch))
        assert expected.keys() == alone.state_dict().keys()
        for key, value in alone.state_dict().items():
            assert_close(expected[key].double(), value.double(), 1e-6)


@parametrised(CASES)
def test_a_step_trains_the_sampled_path_and_nothing_else(case: Case, double: None) -> None:
    net = supernet_of(case).train()
    for arch in samples(case, 2):
        images = images_for(case, arch)
        net.zero_grad(set_to_none=True)
        net.activate(arch)
        alone = net.extract()
        weights = torch.randn_like(logits_of(net(images)))
        (logits_of(net(images)) * weights).sum().backward()
        (logits_of(alone(images)) * weights).sum().backward()
        trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
        others = [parameter for parameter in net.parameters() if parameter.grad is None]
        assert reaching(net, arch, trained, alone) == trained
        assert not spreads(
            net, arch, others, [name for name, each in alone.named_parameters() if each.grad is not None]
        )
        assert_same_slope(net, arch, alone)


def reaching(net: Supernet, arch: Architecture, names: set[str], alone: nn.Module) -> set[str]:
    """Return which of the shared parameters `names` reach a trained parameter of the extracted network.

    Most hand over a view of themselves; of the others, nan spreads to what is computed from them.
    """
    wanted = [name for name, parameter in alone.named_parameters() if parameter.grad is not None]
    parameters = dict(net.named_parameters())
    state = net.inherited(net.space.check(arch))
    storages = {state[name].untyped_storage().data_ptr() for name in wanted}
    found = {name for name in names if parameters[name].untyped_storage().data_ptr() in storages}
    return found | {name for name in names - found if spreads(net, arch, [parameters[name]], wanted)}


@torch.no_grad()
def spreads(net: Supernet, arch: Architecture, sources: list[nn.Parameter], wanted: list[str]) -> bool:
    """Return whether nan in any of `sources` reaches one of the inherited parameters `wanted`."""
    kept = [source.clone() for source in sources]
    for source in sources:
        source.fill_(float("nan"))
    state = net.inherited(net.space.check(arch))
    reached = any(bool(state[name].isnan().any()) for name in wanted)
    for source, before in zip(sources, kept, strict=True):
        source.copy_(before)
    return reached


def assert_same_slope(net: Supernet, arch: Architecture, alone: nn.Module, step: float = 1e-4) -> None:
    """Assert that the loss rises equally along a random direction by both networks' gradients.

    However the shared weights become those of the extracted network, the chain rule holds: the slope by the shared
    weights' gradients is that by the extracted network's along the way its weights move.
    """
    directions = {name: torch.randn_like(parameter) for name, parameter in net.named_parameters()}
    parameters = dict(net.named_parameters())
    ends = []
    with torch.no_grad():
        kept = {name: parameter.clone() for name, parameter in parameters.items()}
        for sign in (1, -1):
            for name, parameter in parameters.items():
                parameter.copy_(kept[name] + sign * step * directions[name])
            state = net.inherited(net.space.check(arch))
            ends.append({name: state[name].clone() for name, _ in alone.named_parameters()})
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
    moved = {name: (ends[0][name] - ends[1][name]) / (2 * step) for name in ends[0]}
    terms = [(each.grad * moved[name]).sum() for name, each in alone.named_parameters() if each.grad is not None]
    shared = [(each.grad * directions[name]).sum() for name, each in parameters.items() if each.grad is not None]
    scale = torch.stack([term.abs() for term in terms]).sum()
    assert abs(sum(terms) - sum(shared)) <= 1e-6 * scale  # type: ignore[arg-type]


@pytest.mark.slow
@parametrised(CASES)
def test_networks_export_to_onnx_with_both_exporters(case: Case, tmp_path: Path) -> None:
    """A motley network of every case by torchscript; by dynamo, which takes seconds, a small one of every space."""
    from compress.export.exporters import ExportConfig, export

    if not case.task.gives_tensor:
        pytest.skip("what of such a network is written to a file, its task says")
    torch.manual_seed(0)
    space = space_of(case)
    drawn = samples(case, 12, seed=5)
    chosen = {"torchscript": max(drawn, key=lambda arch: len(set(arch.values())))}
    if case is next(each for each in CASES if each.space == case.space):
        first = space.complete({}, lambda decision: decision.choices[0])
        with without_storage():
            small = min([first, *drawn], key=lambda arch: len(list(space.build(arch, case.task).modules())))
        chosen["dynamo"] = small
    for name, arch in chosen.items():
        network = space.build(arch, case.task)
        config = ExportConfig(exporter=name)
        result = export(network, images_for(case, arch, 2), tmp_path / f"{name}.onnx", config)
        assert result.parity_max_rel <= 1e-4
        assert result.tried[name]["error"] is None
