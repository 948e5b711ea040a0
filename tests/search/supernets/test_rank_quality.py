"""Rank quality: figures against their definitions and scipy's, and what happens where they are undefined."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats

from compress.core.errors import InputError
from search.supernets.rank_quality import quality


def with_ties(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return correlated scores and true values, with equal ones among both."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(90, 2, number).round(1)
    return (truth + generator.normal(0, 2, number)).round(0), truth


def test_correlations_are_those_of_scipy() -> None:
    for number, seed in ((3, 0), (36, 1), (500, 2)):
        scores, truth = with_ties(number, seed)
        found = quality(scores, truth)
        assert found.kendall == pytest.approx(scipy.stats.kendalltau(scores, truth).statistic)
        assert found.spearman == pytest.approx(scipy.stats.spearmanr(scores, truth).statistic)
        assert found.pearson == pytest.approx(scipy.stats.pearsonr(scores, truth).statistic)


def test_tau_b_counts_pairs_and_corrects_for_ties() -> None:
    scores, truth = [1.0, 2, 2, 3, 5], [1.0, 3, 2, 2, 4]
    pairs = list(itertools.combinations(range(5), 2))
    signs = [(np.sign(scores[i] - scores[j]), np.sign(truth[i] - truth[j])) for i, j in pairs]
    expected = sum(a * b for a, b in signs) / math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    assert quality(scores, truth).kendall == pytest.approx(expected)


def test_interval_is_that_of_scipys_bootstrap() -> None:
    scores, truth = with_ties(40, 3)
    found = quality(scores, truth)
    theirs = scipy.stats.bootstrap(
        (scores, truth),
        lambda a, b: scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        random_state=1,
    ).confidence_interval
    assert found.spearman_ci95 is not None
    assert found.spearman_ci95 == pytest.approx(theirs, abs=0.04)
    assert found.spearman_ci95[0] < (found.spearman or 0) < found.spearman_ci95[1]
    assert found == quality(scores, truth)


def test_regret_and_precision_follow_their_definitions() -> None:
    truth = np.arange(40.0)
    scores = np.array([(7 * i) % 40 for i in range(40)], dtype=float)
    found = quality(scores, truth)
    order = sorted(range(40), key=lambda i: -scores[i])
    for k in (1, 5, 10):
        assert found.regret[k] == 39 - max(truth[i] for i in order[:k])
    assert found.top == 4
    assert found.precision == len(set(order[:4]) & {36, 37, 38, 39}) / 4
    perfect = quality(truth, truth)
    assert perfect.regret == {1: 0, 5: 0, 10: 0} and perfect.precision == 1.0


def test_regret_is_left_out_where_there_are_fewer_architectures_than_k() -> None:
    assert set(quality([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]).regret) == {1, 5}


def test_equal_scores_are_picked_worst_first_whatever_the_order_of_rows() -> None:
    truth = [90.0, 80.0, 70.0]
    for order in itertools.permutations(range(3)):
        assert quality([1.0, 1.0, 0.0], truth).regret[1] == 10
        found = quality([[1.0, 1.0, 0.0][i] for i in order], [truth[i] for i in order])
        assert found.regret[1] == 10 and found.precision == 0


def test_equally_good_networks_are_all_among_the_best() -> None:
    assert quality([1, 2, 3, 0], [90, 90, 90, 80]).precision == 1.0


def test_a_lower_loss_is_better() -> None:
    losses, truth = [0.5, 0.1, 0.4, 0.9], [80.0, 95.0, 85.0, 10.0]
    found = quality(losses, truth, "minimize")
    assert (found.kendall, found.spearman) == pytest.approx((1, 1)) and found.regret[1] == 0
    assert found == quality([-x for x in losses], truth)
    both = quality(losses, [-x for x in truth], "minimize", "minimize")
    assert both.regret[1] == 0 and both.spearman == pytest.approx(1)
    assert quality(losses, truth).spearman == pytest.approx(-1)


def test_constant_scores_have_no_correlation_and_that_is_null() -> None:
    for scores, truth in (([5, 5, 5, 5], [1, 2, 3, 4]), ([1, 2, 3, 4], [5, 5, 5, 5])):
        found = quality(scores, truth)
        assert (found.kendall, found.spearman, found.pearson, found.spearman_ci95) == (None, None, None, None)
        assert "NaN" not in json.dumps(found.as_dict())
    assert quality([5, 5, 5, 5], [1, 2, 3, 4]).regret[1] == 3


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_counts_as_the_worst(broken: float, direction: str) -> None:
    sign = 1 if direction == "maximize" else -1
    found = quality([sign, sign * 2, sign * 3, broken], [70, 80, 90, 10], direction)  # type: ignore[arg-type]
    assert (found.kendall, found.spearman) == pytest.approx((1, 1))
    assert found.pearson is None and found.not_finite == 1
    assert "NaN" not in json.dumps(found.as_dict())


@pytest.mark.parametrize(
    ("scores", "truth", "said"),
    [
        ([1, 2], [1, 2], "2 architecture"),
        ([1, 2, 3], [1, 2], "3 scores for 2 true values"),
        ([1, 2, 3], [1, math.nan, 3], "true value 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores: list[float], truth: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        quality(scores, truth)


def test_many_architectures_take_no_time_to_speak_of() -> None:
    scores, truth = with_ties(32768, 4)
    found = quality(scores, truth, resamples=20)
    assert found.spearman_ci95 is not None
    assert found.spearman_ci95[1] - found.spearman_ci95[0] < 0.02
