from __future__ import annotations

import pytest
from pydantic import ValidationError

from compress.core.errors import InputError
from evaluators.tasks import DEFAULT, Metric
from evaluators.tasks.classification import ClassificationConfig
from search.objective import Limit, ObjectiveConfig, Reward

FAST = {"top1": 90.0, "latency_ms": 0.5, "macs": 4e6}
SLOW = {"top1": 92.0, "latency_ms": 2.0, "macs": 6e6}


class Brier(ClassificationConfig):
    metrics = (Metric("brier", "minimize", "Brier", "Brier score"), *ClassificationConfig.metrics)


def objective(task=DEFAULT, **given):
    return ObjectiveConfig.model_validate(given).for_task(task)


def test_the_main_metric_of_the_task_is_searched_for_by_default():
    assert objective().values(FAST) == [90.0]
    assert objective().directions == ("maximize",)
    assert objective(maximize=[], minimize=["macs"]).directions == ("minimize",)
    assert objective(minimize=["macs"]).names == ("top1", "macs")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ("brier",)),
        ({"minimize": ["macs"]}, ("brier", "macs")),
        ({"minimize": ["macs", "brier"]}, ("macs", "brier")),
        ({"maximize": [], "minimize": ["macs"]}, ("macs",)),
    ],
)
def test_a_main_metric_that_should_be_small_is_minimized(given, names):
    found = objective(Brier(), **given)
    assert (found.names, found.directions) == (names, ("minimize",) * len(names))


def test_a_reward_for_a_main_metric_that_should_be_small_is_a_sentence():
    with pytest.raises(InputError, match=r"^search\.objective: reward needs exactly one metric in maximize"):
        objective(Brier(), reward={"target": 1})


def test_several_metrics_are_several_values_maximised_ones_first():
    both = objective(maximize=["top1"], minimize=["latency_ms", "macs"])
    assert both.values(FAST) == [90.0, 0.5, 4e6]
    assert both.directions == ("maximize", "minimize", "minimize")
    assert both.names == ("top1", "latency_ms", "macs")


def test_weights_make_one_value():
    assert objective(weights={"top1": 1.0, "latency_ms": -2.0}).values(SLOW) == [88.0]


@pytest.mark.parametrize(
    ("metrics", "below", "above", "factor"),
    [
        (SLOW, -0.07, -0.07, 0.9526),  # twice the target at w = -0.07: "about 5 % of accuracy" (Tan et al. 2019, 3.1)
        (FAST, -0.07, -0.07, 1.0497),
        (FAST, 0.0, -1.0, 1.0),  # the hard variant: nothing gained below the target
        (SLOW, 0.0, -1.0, 0.5),
    ],
)
def test_reward_scales_accuracy_by_the_exponent_of_its_side(metrics, below, above, factor):
    reward = Reward(metric="latency_ms", target=1.0, below=below, above=above)
    assert objective(reward=reward).values(metrics)[0] == pytest.approx(metrics["top1"] * factor, rel=1e-4)


def test_reward_is_the_metric_itself_at_the_target():
    assert Reward(metric="latency_ms", target=2.0).factor(2.0) == 1.0


def test_a_broken_constraint_is_a_sentence():
    limited = objective(constraints={"macs": Limit(max=5e6)})
    assert limited.complaint(FAST) is None
    assert limited.complaint(SLOW) == "macs 6e+06 is above 5e+06"
    assert objective(constraints={"top1": {"min": 91}}).complaint(FAST) == "top1 90 is below 91"


def test_violations_are_positive_where_a_constraint_is_broken():
    limited = objective(constraints={"macs": {"min": 1e6, "max": 5e6}, "top1": {"min": 80}})
    assert limited.violations(SLOW) == {"macs": 1e6, "top1": -12.0}
    assert limited.violations({"top1": 70.0}) == {"top1": 10.0}


def test_metrics_names_everything_that_is_needed_once():
    wanted = objective(
        reward={"metric": "latency_ms", "target": 1}, constraints={"top1": {"min": 1}, "macs": {"max": 9}}
    )
    assert wanted.metrics == ("top1", "latency_ms", "macs")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"maximize": ["top1"], "minimize": ["top1"]}, "top1 is in maximize and in minimize"),
        ({"maximize": [], "minimize": []}, "nothing to search for"),
        ({"maximize": ["top1", "top5"], "reward": {"target": 1}}, "exactly one metric in maximize"),
        ({"weights": {"top1": 1}, "reward": {"target": 1}}, "no weights"),
        ({"constraints": {"macs": {}}}, "needs min or max"),
        ({"constraints": {"macs": {"min": 2, "max": 1}}}, "is above max"),
    ],
)
def test_contradictions_are_refused(given, says):
    with pytest.raises(ValidationError, match=says):
        objective(**given)
