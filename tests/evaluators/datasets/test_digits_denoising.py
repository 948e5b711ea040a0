from __future__ import annotations

from typing import Any

import pytest
import torch

from compress.testing.datasets import check_dataset
from evaluators.datasets.digits_denoising import DigitsDenoisingConfig
from evaluators.datasets.holdout import resized, with_holdout
from evaluators.tasks.evaluation import evaluate
from evaluators.tasks.regression import RegressionConfig
from spaces.dncnn import DnCNN

TASK = RegressionConfig(metric="psnr", data_range=1.0)


def small(**options: Any) -> DigitsDenoisingConfig:
    return DigitsDenoisingConfig(name="digits_denoising", limit_train=40, limit_test=30, batch_size=16, **options)


def test_it_is_a_data_set() -> None:
    check_dataset(small(), TASK)


def test_test_images_are_the_same_for_every_seed_and_as_noisy_as_asked() -> None:
    data, other = (small(noise=0.1).load(TASK, seed=seed) for seed in (0, 1))
    assert data.test is not None and other.test is not None and data.train is not None
    for batch, again in zip(data.test.batches(), other.test.batches(), strict=True):
        assert torch.equal(batch.inputs, again.inputs) and torch.equal(batch.targets, again.targets)
        assert float((batch.inputs - batch.targets).std()) == pytest.approx(0.1, rel=0.05)
        assert 0 <= float(batch.targets.min()) and float(batch.targets.max()) <= 1
    assert evaluate(lambda images: images, data.test, data.task)["psnr"] == pytest.approx(20, abs=0.2)
    first, second = (next(iter(data.train.epoch(epoch))) for epoch in (0, 1))
    noise = [dict(zip(each.index.tolist(), each.inputs - each.targets, strict=True)) for each in (first, second)]
    both = noise[0].keys() & noise[1].keys()
    assert both and not any(torch.equal(noise[0][index], noise[1][index]) for index in both)


def test_it_is_divided_and_resized() -> None:
    data = with_holdout(small().load(TASK), 0.25, 0)
    larger = resized(data, 48)
    assert data.train is not None and data.train.num_samples == 30 and larger.test is not None
    batch = next(iter(larger.test.batches()))
    assert batch.inputs.shape == batch.targets.shape == (10, 1, 48, 48)


def test_a_denoiser_of_no_weight_gives_the_image() -> None:
    model = DnCNN(depth=3, width=4).eval()
    torch.nn.init.zeros_(model.noise.weight)
    torch.nn.init.zeros_(model.noise.bias)  # type: ignore[arg-type]
    images = torch.rand(2, 1, 9, 7)
    assert torch.equal(model(images), images)
    with pytest.raises(ValueError, match="got 1; allowed 2"):
        DnCNN(depth=1)
