"""A network that changes its input in place must not change what others see of it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.batch_norm import recalibrate
from compress.criteria.unit_criterion import ScoringData
from compress.distill.finetune import FinetuneConfig
from compress.distill.losses.kd import KdConfig, kd_loss
from compress.graph.build import build_graph
from compress.prune.blocks import block_influence
from compress.prune.merge import MergeConfig, fold_all, merge_units
from compress.training.step import StepContext
from compress.training.update import Updater
from evaluators.candidates.zero_cost import grad_norm, jacov, naswot
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT
from evaluators.tasks.evaluation import evaluate


class Scaling(nn.Module):
    """Scales its input, in place or not, and classifies it."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, 3)
            )

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul_(2).add_(0.5) if self.in_place else 2 * x + 0.5
        logits: Tensor = self.body(x)
        return logits


TASK = DEFAULT.bind(3, (3, 4, 4))


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(count, 3, 4, 4, generator=generator), torch.arange(count) % 3)


def images() -> Tensor:
    found = batch().inputs
    assert isinstance(found, Tensor)
    return found


class Held:
    """A test split whose batches are views of the images that it holds."""

    batch_size, num_samples = 2, 6

    def __init__(self) -> None:
        self.all = batch()

    def batches(self) -> Iterator[Batch]:
        yield from self.all.split(2)


@pytest.mark.parametrize("student", [False, True])
@pytest.mark.parametrize("teacher", [False, True])
def test_student_and_teacher_see_the_same_images(student: bool, teacher: bool) -> None:
    config = FinetuneConfig(distill=KdConfig(temperature=3.0, weight=0.7))
    data: Any = SimpleNamespace(task=TASK, train=[batch()])
    step = config.make_step(StepContext(config, data, Scaling(teacher)), seed=0)
    it = Updater(Scaling(student).train(), step, config, device="cpu", seed=0, batches=1)
    logits, guidance = Scaling(False).train()(images()), Scaling(False).eval()(images())
    expected = 0.7 * kd_loss(logits, guidance, 3.0) + 0.3 * F.cross_entropy(logits, batch().targets)
    assert float(it.update(batch(), 0)) == pytest.approx(expected.item())


def test_evaluating_again_gives_the_same_and_leaves_the_test_images_alone() -> None:
    held: Any = Held()
    first, again = evaluate(Scaling(True), held, TASK), evaluate(Scaling(True), held, TASK)
    assert first == again == evaluate(Scaling(False), held, TASK)
    assert torch.equal(held.all.inputs, images())


def test_statistics_can_be_renewed_on_batches_that_are_kept() -> None:
    batches = [batch()]
    for model in (Scaling(True), Scaling(True)):
        recalibrate(model, batches, 1, forward=TASK.forward)
        apart = Scaling(False)
        recalibrate(apart, [images()], 1)
        assert torch.equal(model.body[1].running_mean, apart.body[1].running_mean)


def test_criteria_see_the_batches_as_they_are() -> None:
    kept = batch()
    graph = build_graph(Scaling(False), images()[:1])
    data = ScoringData(graph, batches=lambda: [kept])
    for _ in range(2):
        some, *_ = data.draws("taylor")
        assert isinstance(some.inputs, Tensor) and torch.equal(some.inputs, images())
        some.inputs.mul_(2)


def test_channels_are_merged_in_a_network_that_works_in_place() -> None:
    one = images()[:1]
    model, apart = Scaling(True).eval(), Scaling(False).eval()
    for each in (model, apart):
        fold_all(each, one)
    results = [merge_units(each, build_graph(each, one), MergeConfig(kind="merge")) for each in (model, apart)]
    assert torch.equal(one, images()[:1])
    assert results[0].kept.keys() == results[1].kept.keys() and model.state_dict().keys() == apart.state_dict().keys()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), apart.parameters(), strict=True))


class Stream(nn.Module):
    """Two residual blocks that add to the stream in place, or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Adding(in_place, 0.1), Adding(in_place, 1.0)])

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        for block in self.blocks:
            x = block(x)
        return x


class Adding(nn.Module):
    def __init__(self, in_place: bool, amount: float) -> None:
        super().__init__()
        self.in_place, self.weight = in_place, nn.Parameter(torch.tensor(amount))

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.weight * x) if self.in_place else x + self.weight * x


def test_a_block_that_adds_in_place_counts_for_what_it_changes() -> None:
    names = ("blocks.0", "blocks.1")
    ours, expected = (block_influence(Stream(way), names, [images()]) for way in (True, False))
    assert ours == pytest.approx(expected) and 0 < ours["blocks.0"] < ours["blocks.1"]


def test_scores_of_untrained_networks_are_the_same_for_both() -> None:
    assert naswot(Scaling(True), images()) == pytest.approx(naswot(Scaling(False), images()))
    assert jacov(Scaling(True), images()) == pytest.approx(jacov(Scaling(False), images()))
    kept = batch()
    assert grad_norm(Scaling(True), kept, TASK) == pytest.approx(grad_norm(Scaling(False), kept, TASK))
