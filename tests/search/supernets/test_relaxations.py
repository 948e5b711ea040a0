"""What candidates weigh: gradients by hand, frequencies of draws, what a step leaves alone."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from torch import Generator, Tensor

from evaluators.datasets.loaders import seed_of
from search.supernets.relaxations import Binary, Gumbel, Relaxation, Softmax

STRENGTHS = torch.tensor([[0.3, -0.4, 1.1, 0.0], [0.7, 0.2, -0.1, -torch.inf], [0.5, *3 * [-torch.inf]]])
DRAWS = 4000


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed_of(0, seed))


@pytest.mark.parametrize("relaxation", [Softmax(), Gumbel(0.5), Binary()], ids=["softmax", "gumbel", "binary"])
def test_absent_candidates_have_no_weight_and_a_single_one_has_all(relaxation: Relaxation) -> None:
    for weights in (relaxation.training(STRENGTHS, seeded(0)), relaxation.searching(STRENGTHS, seeded(0))):
        assert weights.isfinite().all()
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
        assert not weights[STRENGTHS.isinf()].any() and weights[2, 0] == 1


def test_gumbel_draws_average_to_the_probabilities() -> None:
    """At a low temperature each draw is all but one-hot, and its mean what the candidates' probabilities are."""
    draws = torch.stack([Gumbel(1e-3).training(STRENGTHS, seeded(seed)) for seed in range(DRAWS)])
    expected = STRENGTHS.softmax(1)
    error = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((draws.mean(0) - expected).abs() <= 4 * error + 1e-3).all()


def test_gumbel_draws_are_nearer_to_one_candidate_the_lower_the_temperature() -> None:
    hot, cold = (
        torch.stack([Gumbel(heat).training(STRENGTHS, seeded(seed))[0] for seed in range(200)]).amax(1).mean()
        for heat in (1.0, 0.33)
    )
    assert hot < cold < 1


def test_gumbel_gradients_are_those_of_the_draw() -> None:
    strengths = STRENGTHS[:1].double().requires_grad_()
    outputs = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: (Gumbel(0.7).searching(s, seeded(3)) * outputs).sum(), strengths)


def test_one_path_is_drawn_as_often_as_it_is_likely() -> None:
    draws = torch.stack([Binary().training(STRENGTHS, seeded(seed)) for seed in range(DRAWS)])
    assert ((draws == 0) | (draws == 1)).all()
    counts = draws.sum(0)
    assert chisquare(counts[0], DRAWS * STRENGTHS[0].softmax(0)).pvalue > 0.01
    assert chisquare(counts[1, :3], DRAWS * STRENGTHS[1, :3].softmax(0)).pvalue > 0.01


def test_two_paths_are_drawn_without_replacement_and_one_of_them_is_open() -> None:
    p = STRENGTHS[0].double().softmax(0)
    draws = torch.stack([Binary().searching(STRENGTHS, seeded(seed)) for seed in range(DRAWS)])[:, 0]
    assert ((draws != 0).sum(1) == 2).all() and ((draws == 1).sum(1) == 1).all()
    pairs = [(i, j) for i in range(4) for j in range(i)]
    chance = [p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])) for i, j in pairs]
    both = torch.stack([(draws[:, i] != 0) & (draws[:, j] != 0) for i, j in pairs])
    assert chisquare(both.sum(1), DRAWS * torch.stack(chance)).pvalue > 0.01
    opened = (draws[both[1]][:, 2] == 1).double().mean()
    assert opened.item() == pytest.approx((p[2] / (p[2] + p[0])).item(), abs=0.04)


def test_gradients_of_gates_become_those_of_strengths_by_the_published_formula() -> None:
    """dL/da_i = sum_j dL/dg_j p_j (delta_ij - p_i) for the two that were drawn; the others have none."""
    strengths = STRENGTHS.clone().requires_grad_()
    gates = Binary().searching(strengths, seeded(1))
    slopes = torch.randn(gates.shape, generator=seeded(2))
    (gates * slopes).sum().backward()
    expected = torch.zeros(gates.shape)
    for row in range(2):
        pair = gates[row].nonzero().flatten().tolist()
        p = STRENGTHS[row, pair].softmax(0)
        for i, place in enumerate(pair):
            expected[row, place] = sum(slopes[row, pair[j]] * p[j] * (float(i == j) - p[i]) for j in range(2))
    assert expected[:2].count_nonzero() == 4
    torch.testing.assert_close(strengths.grad, expected)


def test_a_step_of_two_leaves_the_probabilities_of_the_others() -> None:
    gates = Binary().searching(STRENGTHS, seeded(1))
    changed = STRENGTHS + torch.randn(STRENGTHS.shape, generator=seeded(4))  # all of them, as momentum does
    settled = Binary().settled(STRENGTHS, changed, gates)
    before, after, pair = STRENGTHS.softmax(1), settled.softmax(1), gates != 0
    torch.testing.assert_close(after[~pair], before[~pair])
    assert ((after - before)[:2][pair[:2]].abs() > 1e-3).all()
    moved, wanted = (odds(each, pair) for each in (settled, changed))
    torch.testing.assert_close(moved, wanted)


def odds(strengths: Tensor, pair: Tensor) -> Tensor:
    """How much stronger one of the two drawn candidates is, in the two rows that have two."""
    return torch.stack([strengths[row, pair[row]].diff() for row in range(2)])
