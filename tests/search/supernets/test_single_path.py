"""What strategies.md asks of single-path training: section 3.7."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from compress.core.batch_norm import recalibrate
from compress.core.errors import InputError
from compress.core.problems import validated
from compress.distill.losses.kd import kd_loss
from compress.training.engine import Engine
from evaluators.datasets import Data
from evaluators.datasets.digits import DigitsConfig
from evaluators.datasets.holdout import with_holdout
from evaluators.datasets.loaders import seed_of
from evaluators.tasks import DEFAULT
from evaluators.tasks.evaluation import evaluate
from search.space import SpaceConfig
from search.supernets.method import SupernetConfig, SupernetContext, seeded
from search.supernets.paths import Fair, MacsRange, Sandwich, Uniform, extreme
from search.supernets.single_path import SinglePath, SinglePathStep
from spaces.registry import create
from spaces.space import Space
from spaces.supernet import Supernet


@pytest.fixture(scope="module")
def data() -> Data:
    whole = DigitsConfig(name="digits", image_size=16, batch_size=64).load(DEFAULT, seed=0)
    assert whole is not None
    return with_holdout(whole, 0.2, 0)


@pytest.fixture
def space() -> Space:
    """27 networks: three layers of three operations each, none of them conditional."""
    found = create("nas_bench_macro", {"stem": 8, "depths": (1, 2)})
    found.default_task = found.task(10, 3, 16)
    return found


def method(**paths: Any) -> SinglePath:
    return validated(SinglePath, {"name": "single_path", **({"paths": paths} if paths else {})})


def context(data: Data, tmp_path: Path, **settings: Any) -> SupernetContext:
    given = {"method": "single_path", "optimizer": "momentum", "lr": 0.1, "weight_decay": 1e-3, **settings}
    return SupernetContext(validated(SupernetConfig, given), data, "cpu", 0, tmp_path)


def step_of(space: Space, data: Data, tmp_path: Path, **paths: Any) -> tuple[Supernet, SinglePathStep]:
    with seeded(0):
        supernet = space.supernet(data.task)
    step = method(**paths).step(supernet, context(data, tmp_path))
    step.prepare(supernet, Engine("cpu"))
    return supernet.train(), step


def first_batch(data: Data) -> Any:
    assert data.train is not None
    return next(data.train.epoch(0))


def choices_drawn(paths: Uniform | Fair | Sandwich, space: Space, updates: int) -> Counter[Any]:
    draw = paths.drawer(space, space.default_task)
    return Counter(arch for update in range(updates) for arch in draw(random.Random(update)))


def test_paths_are_uniform(space: Space) -> None:
    drawn = choices_drawn(Uniform(), space, 2700)
    assert len(drawn) == space.count()
    assert chisquare([drawn[arch] for arch in space]).pvalue > 1e-3


def test_a_range_of_macs_is_drawn_evenly(space: Space) -> None:
    costs = sorted(space.cost(arch)["macs"] for arch in space)
    low, high = costs[3], costs[-3]
    drawn = choices_drawn(Uniform(macs=MacsRange(min=low, max=high, bins=2)), space, 400)
    found = [macs for arch, count in drawn.items() for macs in [space.cost(arch)["macs"]] * count]
    assert all(low <= macs < high for macs in found)
    below = sum(macs < (low + high) / 2 for macs in found)
    assert 160 < below < 240


def test_only_what_the_path_uses_gets_gradients(space: Space, data: Data, tmp_path: Path) -> None:
    supernet, step = step_of(space, data, tmp_path)
    step.loss(supernet, first_batch(data), 0).backward()
    used = {name for name, parameter in supernet.named_parameters() if parameter.grad is not None}
    active = supernet.active
    assert active is not None and 0 < len(used) < len(list(supernet.parameters()))
    assert len(used) == len(list(space.build(active).parameters()))


def test_fair_paths_use_every_operation_once(space: Space) -> None:
    draw = Fair().drawer(space, space.default_task)
    for update in range(20):
        paths = draw(random.Random(update))
        for decision in space.decisions:
            assert Counter(path[decision.name] for path in paths) == Counter(decision.choices)
    assert draw(random.Random(0)) == draw(random.Random(0)) != draw(random.Random(1))


def test_fair_gradients_are_the_sum_of_the_paths(space: Space, data: Data, tmp_path: Path) -> None:
    supernet, step = step_of(space, data, tmp_path, kind="fair")
    batch, buffers = first_batch(data), {name: value.clone() for name, value in supernet.named_buffers()}
    step.loss(supernet, batch, 7)
    found = {
        name: parameter.grad.clone() for name, parameter in supernet.named_parameters() if parameter.grad is not None
    }
    assert len(found) == len(list(supernet.parameters()))  # every operation was trained
    supernet.zero_grad()
    for name, value in supernet.named_buffers():
        value.copy_(buffers[name])
    for arch in step.draw(random.Random(seed_of(0, 7))):
        supernet.activate(arch)
        step.loss_of(supernet, batch).backward()
    for name, parameter in supernet.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, found[name])


def test_the_sandwich_is_largest_smallest_and_some(space: Space) -> None:
    task = space.default_task
    costs = {arch: space.cost(arch)["macs"] for arch in space}
    assert costs[extreme(space, task, 1)] == max(costs.values())
    assert costs[extreme(space, task, -1)] == min(costs.values())
    paths = Sandwich(between=3).drawer(space, task)(random.Random(0))
    assert len(paths) == 5
    assert paths[:2] == [extreme(space, task, 1), extreme(space, task, -1)]


def test_all_but_the_largest_learn_from_it(space: Space, data: Data, tmp_path: Path) -> None:
    supernet, step = step_of(space, data, tmp_path, kind="sandwich", between=0)
    batch = first_batch(data)
    total = step.loss(supernet, batch, 0)
    found = {name: parameter.grad for name, parameter in supernet.named_parameters() if parameter.grad is not None}
    supernet.zero_grad()
    largest, smallest = step.draw(random.Random(0))
    supernet.activate(largest)
    logits = supernet(batch.inputs)
    first = torch.nn.functional.cross_entropy(logits, batch.targets)
    first.backward()
    supernet.activate(smallest)
    second = kd_loss(supernet(batch.inputs), logits.detach(), 1.0)
    second.backward()
    torch.testing.assert_close(total, (first + second).detach())
    for name, parameter in supernet.named_parameters():
        if name in found:
            torch.testing.assert_close(parameter.grad, found[name])


@pytest.mark.parametrize("kind", ["uniform", "fair", "sandwich"])
def test_training_resumes_bit_for_bit(space: Space, tmp_path: Path, kind: str) -> None:
    few = DigitsConfig(name="digits", image_size=16, batch_size=64, limit_train=320).load(DEFAULT, seed=0)
    assert few is not None
    split = with_holdout(few, 0.2, 0)
    whole, cut = (context(split, tmp_path / name, lr=0.02, epochs=2, checkpoint_seconds=0) for name in ("whole", "cut"))
    with seeded(0):
        one, other = (space.supernet(split.task) for _ in range(2))
    other.load_state_dict(one.state_dict())
    method(kind=kind).train(one, whole)

    def stop(event: dict[str, Any]) -> None:
        if event["epoch"] == 2:  # the last checkpoint is from before its end
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method(kind=kind).train(other, replace(cut, log=stop))
    with seeded(99):
        fresh = space.supernet(split.task)
    method(kind=kind).train(fresh, replace(cut, resume=True))
    for name, value in one.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_accuracy_needs_statistics_of_its_own(space: Space, data: Data, tmp_path: Path) -> None:
    """The spec: without recalibration far lower than with it; both on average over paths."""
    with seeded(0):
        supernet = space.supernet(data.task)
    events: list[dict[str, Any]] = []
    method().train(supernet, replace(context(data, tmp_path, epochs=4), log=events.append))
    assert events[-1]["loss"] < events[0]["loss"] / 1.5
    assert data.train is not None and data.test is not None
    without, renewed = [], []
    for arch in list(space)[::3]:
        model = supernet.extract(arch)
        without.append(evaluate(model, data.test, data.task)["top1"])
        recalibrate(model, data.train.epoch(0), 10, forward=data.task.forward)
        renewed.append(evaluate(model, data.test, data.task)["top1"])
    assert sum(renewed) > sum(without)


def test_wrong_options_are_sentences() -> None:
    with pytest.raises(InputError, match=r"paths.macs: min \(5\) has to be below max \(4\)"):
        method(kind="uniform", macs={"min": 5, "max": 4})
    with pytest.raises(InputError, match=r"paths.kind"):
        method(kind="shortest")
    with pytest.raises(InputError, match="keep: best and patience need the accuracy of one network"):
        validated(SupernetConfig, {"method": "single_path", "keep": "best"})
    assert validated(SupernetConfig, {"method": "single_path", "space": {"name": "pooling"}}).space == SpaceConfig(
        name="pooling"
    )
