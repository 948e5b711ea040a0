from __future__ import annotations

import pytest
import torch
from torch import Tensor

from search.supernets.balancing import assigned, balanced

BIAS = torch.tensor([0.03, 0.01, -0.01, -0.02], dtype=torch.double)


def scores(seed: int) -> Tensor:
    """Accuracies of 36 architectures in four models, some of which are better at everything."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(36, 5, generator=generator, dtype=torch.double)
    return 0.75 + 0.05 * noise[:, :1] + BIAS + 0.015 * noise[:, 1:]


def shares(logits: Tensor, shift: Tensor) -> Tensor:
    return assigned(logits, shift).mean(0)


def test_untried_models_are_equally_busy_without_a_division() -> None:
    shift, divisions = balanced(torch.ones(36, 4, dtype=torch.double))
    assert divisions == 0
    assert torch.equal(assigned(torch.ones(36, 4, dtype=torch.double), shift), torch.full((36, 4), 0.25).double())


@pytest.mark.parametrize(
    ("temperature", "fewest", "most", "busiest"), [(10, 1, 1, 0.34), (50, 2, 5, 0.66), (100, 4, 8, 0.83)]
)
def test_synthetic_scores_take_some_divisions(temperature: float, fewest: int, most: int, busiest: float) -> None:
    for seed in range(10):
        logits = temperature * scores(seed)
        assert 0.28 < float(shares(logits, torch.zeros(4).double()).max()) <= busiest
        shift, divisions = balanced(logits)
        assert fewest <= divisions <= most
        assert float((shares(logits, shift) - 0.25).abs().max()) < 0.0055


@pytest.mark.parametrize("temperature", [1, 30, 300, 1e4])
@pytest.mark.parametrize("shape", [(36, 4), (2, 5), (1, 3), (700, 8), (9, 1)])
def test_models_are_equally_busy_afterwards(temperature: float, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = temperature * torch.rand(*shape, generator=generator, dtype=torch.double)
    found = assigned(logits, balanced(logits)[0])
    assert torch.allclose(found.sum(1), torch.ones(shape[0], dtype=torch.double))
    total_variation = float((found.mean(0) - 1 / shape[1]).abs().sum()) / 2
    assert total_variation <= 0.0071


def test_one_shift_is_all_recorded_divisions_in_their_order() -> None:
    logits = 100 * scores(3)
    now = torch.softmax(logits, 1)
    record: list[Tensor] = []
    while True:
        share = now.mean(0)
        if float((share * torch.log(share * 4)).sum().abs()) <= 1e-4:
            break
        record.append(share)
        now = now / share
        now = now / now.sum(1, keepdim=True)
    shift, divisions = balanced(logits)
    assert divisions == len(record) > 3
    later = 100 * scores(4)  # scores go on changing within an epoch, the record stays
    expected = torch.softmax(later, 1)
    for share in record:
        expected = expected / share
        expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(assigned(later, shift), expected, rtol=1e-9, atol=1e-12)
