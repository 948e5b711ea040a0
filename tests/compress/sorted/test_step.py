from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from nested_cases import bundle_of, nested_of
from torch import nn

from compress.core.errors import InputError
from compress.sorted.config import SortConfig
from compress.sorted.sampling import SamplingConfig, Sandwich, Size, Uniform, Weights
from compress.sorted.step import SortedStep
from compress.sorted.training import Nested
from compress.training.step import StepContext
from compress.training.supervised import Supervised
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from spaces.architecture import Architecture

DECAYING = {"optimizer": "momentum", "lr": 0.1, "weight_decay": 0.1, "decay_norm_and_bias": True}


def updates(found: Nested, draws: list[list[Architecture]], batches: list[Batch], **options: Any) -> Updater:
    """Train `draws`, one list for each update."""
    config = SortConfig.model_validate({"epochs": 1, "warmup_epochs": 0, "schedule": "constant", **DECAYING, **options})
    data: Any = type("Data", (), {"task": found.network.task, "train": None, "test": None})()
    waiting = iter(draws)
    step = SortedStep(Supervised(StepContext(config, data)), lambda _: next(waiting), config.spend, seed=0)
    updater = Updater(found.network, step, config, device="cpu", seed=0, batches=len(draws))
    updater.train()
    for number, batch in enumerate(batches):
        updater.update(batch, number)
    return updater


def batch_for(found: Nested, count: int = 8) -> Batch:
    task = found.network.task
    images = torch.randn(count, *task.input_size, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.arange(count) % task.num_outputs)


def state_of(found: Nested, updater: Updater) -> dict[str, list[torch.Tensor]]:
    memory = updater.optimizer.state
    return {
        name: [
            parameter.detach().clone(),
            *(value.clone() for value in memory.get(parameter, {}).values() if isinstance(value, torch.Tensor)),
        ]
        for name, parameter in found.network.network.named_parameters()
    }


def inside(found: Nested, name: str, parameter: nn.Parameter, members: list[Architecture]) -> torch.Tensor:
    """Return where one of the members uses a parameter, by gradients through its parts."""
    used = torch.zeros_like(parameter, dtype=torch.bool)
    for arch in members:
        parts, gone = found.network.parts(arch)
        if not name.startswith(gone):
            probe = torch.zeros_like(parameter, requires_grad=True)
            (parts[name].of(probe) if name in parts else probe).sum().backward()
            assert probe.grad is not None
            used |= probe.grad != 0
    return used


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("name", ["resnet", "vit", "mobilenetv3"])
def test_what_no_member_of_an_update_uses_neither_decays_nor_moves(name: str, optimizer: str) -> None:
    found = nested_of(bundle_of(name), by="stage" if name != "vit" else "kind", members=30)
    space, generator = found.network.space, random.Random(1)
    first, *two = [space.sample(generator) for _ in range(3)]
    batch = batch_for(found)
    updater = updates(found, [[first, found.network.full], two], [batch], optimizer=optimizer)
    before = state_of(found, updater)
    updater.update(batch, 1)
    after = state_of(found, updater)
    moved = untouched = 0
    for key, parameter in found.network.network.named_parameters():
        used = inside(found, key, parameter, two)
        for old, new in zip(before[key], after[key], strict=True):
            if old.shape == used.shape:
                assert torch.equal(old[~used], new[~used]), key
        moved += int((before[key][0] != after[key][0])[used].sum())
        untouched += int((~used).sum())
    assert untouched > 0
    assert moved > 0.9 * (sum(p.numel() for p in found.network.network.parameters()) - untouched)


def test_the_first_update_leaves_no_momentum_where_nothing_was_used() -> None:
    found = nested_of(bundle_of("resnet"), by="model")
    smallest = found.members[0]
    updater = updates(found, [[smallest]], [batch_for(found)])
    for name, parameter in found.network.network.named_parameters():
        used = inside(found, name, parameter, [smallest])
        for value in updater.optimizer.state.get(parameter, {}).values():
            assert not isinstance(value, torch.Tensor) or not value[~used].any()


def test_gradients_are_those_of_the_members_on_the_whole_batch_or_on_their_parts() -> None:
    for spend in ("repeat", "split"):
        bundle = bundle_of("vit")
        found = nested_of(bundle)
        small, full = found.members[0], found.network.full
        batch = batch_for(found, 9)
        parts = [batch, batch] if spend == "repeat" else [batch.part(0, 5), batch.part(5, 9)]
        expected: dict[str, torch.Tensor] = {}
        for arch, part in zip((full, small), parts, strict=True):
            found.network.activate(arch)
            loss = nn.functional.cross_entropy(found.network(part.inputs), part.targets)
            (loss * (0.5 if spend == "repeat" else len(part) / 9)).backward()
        expected = {name: each.grad.clone() for name, each in bundle.model.named_parameters() if each.grad is not None}
        found.network.zero_grad()
        updater = updates(found, [[full, small]], [batch], data=spend, lr=1e-9)
        assert updater.model is found.network
        got = {name: each.grad for name, each in bundle.model.named_parameters() if each.grad is not None}
        assert got.keys() == expected.keys()
        assert all(torch.allclose(got[name], expected[name], atol=1e-6) for name in expected), spend


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Uniform(), {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}),
        (Size(alpha=1), {0: 1 / 7, 1: 2 / 7, 2: 4 / 7}),
        (Size(alpha=-1), {0: 4 / 7, 1: 2 / 7, 2: 1 / 7}),
        (Weights(weights=[0, 3, 1]), {1: 3 / 4, 2: 1 / 4}),
    ],
)
def test_members_are_drawn_as_the_sampling_says(sampling: SamplingConfig, shares: Mapping[int, float]) -> None:
    members = [Architecture({"width": number}) for number in range(3)]
    draw = sampling.drawer(members, [10, 20, 40], 2)
    generator = random.Random(0)
    counted = Counter(arch["width"] for _ in range(4000) for arch in draw(generator))
    assert set(counted) == set(shares)
    assert all(counted[number] / 8000 == pytest.approx(share, abs=0.02) for number, share in shares.items())


def test_a_sandwich_has_the_largest_and_the_smallest_and_weights_one_for_each_member() -> None:
    members = [Architecture({"width": number}) for number in range(5)]
    drawn = Sandwich().drawer(members, [30, 10, 50, 20, 40], 4)(random.Random(0))
    assert [arch["width"] for arch in drawn[:2]] == [2, 1] and len(drawn) == 4
    with pytest.raises(
        InputError, match=r"^sort\.sampling\.weights: got 2 of them for 5 members; allowed is one for each"
    ):
        Weights(weights=[1, 2]).drawer(members, [1] * 5, 1)
