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
from compress.criteria.base import ScoringData
from compress.distill.finetune import FinetuneConfig
from compress.distill.losses.kd import KdConfig, kd_loss
from compress.graph.build import build_graph
from compress.prune.blocks import block_influence
from compress.prune.merge import MergeConfig, fold_all, merge_units
from compress.training.step import StepContext
from compress.training.update import Updater
from evaluators.candidates.zero_cost import grad_norm, jacov, naswot
from evaluators.tasks.accuracy import evaluate


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


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 4, 4, generator=generator), torch.arange(count) % 3


class Held:
    """A test split whose batches are views of the images that it holds."""

    batch_size, num_samples = 2, 6

    def __init__(self) -> None:
        self.images, self.labels = batch()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(2), self.labels.split(2), strict=True)


@pytest.mark.parametrize("student", [False, True])
@pytest.mark.parametrize("teacher", [False, True])
def test_student_and_teacher_see_the_same_images(student: bool, teacher: bool) -> None:
    config = FinetuneConfig(distill=KdConfig(temperature=3.0, weight=0.7))
    data: Any = SimpleNamespace(num_classes=3)
    step = config.make_step(StepContext(config, data, Scaling(teacher)), seed=0)
    it = Updater(Scaling(student).train(), step, config, device="cpu", seed=0, batches=1)
    images, labels = batch()
    logits, guidance = Scaling(False).train()(images), Scaling(False).eval()(images)
    expected = 0.7 * kd_loss(logits, guidance, 3.0) + 0.3 * F.cross_entropy(logits, labels)
    assert float(it.update(batch(), 0)) == pytest.approx(expected.item())


def test_evaluating_again_gives_the_same_and_leaves_the_test_images_alone() -> None:
    held: Any = Held()
    before = held.images.clone()
    first, again = evaluate(Scaling(True), held), evaluate(Scaling(True), held)
    assert first == again == evaluate(Scaling(False), held)
    assert torch.equal(held.images, before)


def test_statistics_can_be_renewed_on_batches_that_are_kept() -> None:
    batches = [batch()]
    for model in (Scaling(True), Scaling(True)):
        recalibrate(model, batches, 1)
        apart = Scaling(False)
        recalibrate(apart, [batch()], 1)
        assert torch.equal(model.body[1].running_mean, apart.body[1].running_mean)


def test_criteria_see_the_batches_as_they_are() -> None:
    images, labels = batch()
    graph = build_graph(Scaling(False), images[:1])
    data = ScoringData(graph, batches=lambda: [(images, labels)])
    for _ in range(2):
        (some, _), *_ = data.draws("taylor")
        assert torch.equal(some, batch()[0])
        some.mul_(2)


def test_channels_are_merged_in_a_network_that_works_in_place() -> None:
    images = batch()[0][:1]
    model, apart = Scaling(True).eval(), Scaling(False).eval()
    for each in (model, apart):
        fold_all(each, images)
    results = [merge_units(each, build_graph(each, images), MergeConfig(kind="merge")) for each in (model, apart)]
    assert torch.equal(images, batch()[0][:1])
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
    ours, expected = (block_influence(Stream(way), names, [batch()[0]]) for way in (True, False))
    assert ours == pytest.approx(expected) and 0 < ours["blocks.0"] < ours["blocks.1"]


def test_scores_of_untrained_networks_are_the_same_for_both() -> None:
    images, labels = batch()
    assert naswot(Scaling(True), images) == pytest.approx(naswot(Scaling(False), images))
    assert jacov(Scaling(True), images) == pytest.approx(jacov(Scaling(False), images))
    assert grad_norm(Scaling(True), images, labels) == pytest.approx(grad_norm(Scaling(False), images, labels))
