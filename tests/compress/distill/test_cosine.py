from __future__ import annotations

import math

import pytest
import torch

from compress.distill.losses.cosine import CosineConfig


@pytest.mark.parametrize("shape", [(4, 6), (2, 6, 3, 5)])
def test_it_sees_directions_and_no_lengths(shape: tuple[int, ...]) -> None:
    teacher = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    loss = CosineConfig(weight=0.5)
    assert loss.term(3 * teacher, teacher) == pytest.approx(0, abs=1e-6)
    assert loss.term(-teacher, teacher) == pytest.approx(1.0)
    assert loss.label_share == 0.5


def test_it_is_the_mean_over_samples_and_positions() -> None:
    turned = torch.tensor([[1.0, 0.0], [math.cos(1.0), math.sin(1.0)]])
    fixed = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert CosineConfig().term(turned, fixed) == pytest.approx((1 - math.cos(1.0)) / 2, rel=1e-5)
