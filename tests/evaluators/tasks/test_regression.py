from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torchmetrics.image import StructuralSimilarityIndexMeasure

from compress.core.errors import Diverged, InputError
from compress.testing.tasks import check_task
from evaluators.datasets.batch import Batch
from evaluators.tasks import Task
from evaluators.tasks.regression import RegressionConfig


def task_of(**options: Any) -> Task:
    return RegressionConfig(**options).bind(1, (1, 16, 16))


def images(seed: int, count: int = 6) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", ["l1", "l2", "charbonnier"])
@pytest.mark.parametrize("metric", ["mae", "psnr", "ssim"])
def test_it_is_a_task(loss: str, metric: str) -> None:
    task = task_of(loss=loss, metric=metric, data_range=1.0)
    assert task.main_metric.name == task.metrics[0].name == metric
    scale = torch.ones((), requires_grad=True)
    check_task(task, Batch(images(0), images(1)), lambda batch: scale * batch.inputs)


def test_metrics_of_images_are_those_of_the_formulas_and_of_torchmetrics() -> None:
    found, wanted = images(0), images(1)
    meter = task_of(loss="charbonnier", data_range=1.0).meter()
    for batch in Batch(found, wanted).split(4):  # the second is smaller
        meter.update(batch.inputs, batch)
    figures = meter.compute()
    squares = (found - wanted).square()
    assert figures["mae"] == pytest.approx(float((found - wanted).abs().mean()), rel=1e-5)
    assert figures["loss"] == pytest.approx(float((squares + 1e-6).sqrt().mean()), rel=1e-5)
    assert figures["psnr"] == pytest.approx(float((-10 * squares.mean((1, 2, 3)).log10()).mean()), rel=1e-5)
    reference = StructuralSimilarityIndexMeasure(data_range=1.0)
    reference.update(found, wanted)
    assert figures["ssim"] == pytest.approx(float(reference.compute()), rel=1e-5)


def test_a_range_of_bytes_is_that_of_pixels_times_255() -> None:
    figures = []
    for scale in (1.0, 255.0):
        meter = task_of(data_range=scale).meter()
        meter.update(scale * images(0), Batch(images(0), scale * images(1)))
        figures.append(meter.compute())
    assert figures[0]["psnr"] == pytest.approx(figures[1]["psnr"], rel=1e-4)
    assert figures[0]["ssim"] == pytest.approx(figures[1]["ssim"], rel=1e-3)


def test_what_says_nothing_is_none_and_a_perfect_image_is_finite() -> None:
    meter = task_of().meter()
    meter.update(images(0), Batch(images(0), images(0)))
    assert meter.compute() == {"mae": 0, "psnr": None, "ssim": None, "loss": 0}
    assert [metric.name for metric in task_of().metrics] == ["mae", "loss"]
    meter = task_of(data_range=1.0).meter()
    small = images(0)[:, :, :8, :8]
    meter.update(small, Batch(small, small))
    assert meter.compute() == {"mae": 0, "psnr": 100, "ssim": None, "loss": 0}


def test_one_number_for_each_image_is_not_spread_over_the_batch() -> None:
    task, wanted = task_of(loss="l1"), torch.tensor([1.0, 2.0, 3.0])
    found = torch.tensor([[1.0], [2.0], [3.0]])
    assert task.loss(found, Batch(found, wanted)) == 0
    meter = task.meter()
    meter.update(found, Batch(found, wanted))
    assert meter.compute()["mae"] == 0
    with pytest.raises(InputError, match=r"it returns \(3, 2\), the data's targets are \(3,\)"):
        task.loss(torch.zeros(3, 2), Batch(found, wanted))


def test_the_square_of_a_drawn_gradient_is_the_gauss_newton_diagonal() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    samples = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    generator, total = torch.Generator().manual_seed(2), torch.zeros(3, 4)
    for _ in range(2000):
        drawn = task_of().drawn_loss(samples @ weight.T, generator)
        total += torch.autograd.grad(drawn, weight)[0].square()
    exact = samples.square().sum(0).expand(3, 4)  # of half the square, for each row the same
    assert torch.allclose(total / 2000, exact, rtol=0.1)


def test_what_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(ValidationError, match="ssim needs data_range"):
        RegressionConfig(metric="ssim")
    with pytest.raises(InputError, match=r"task.metric: ssim needs images of 11 pixels"):
        task_of(metric="ssim", data_range=1.0).meter().update(
            torch.zeros(1, 1, 8, 8), Batch(0, torch.zeros(1, 1, 8, 8))
        )
    with pytest.raises(InputError, match=r"task.data_range: .*outputs of \(2, 3\); leave it out"):
        task_of(data_range=1.0).meter().update(torch.zeros(2, 3), Batch(0, torch.zeros(2, 3)))
    with pytest.raises(InputError, match="it returns a dict"):
        task_of().tensor({"out": torch.zeros(1)})
    with pytest.raises(Diverged):
        task_of().meter().update(torch.full((2, 3), torch.nan), Batch(0, torch.zeros(2, 3)))
