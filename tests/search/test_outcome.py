from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from search.outcome import best, history, hypervolume, hypervolume_course, importance

CHOICES = CategoricalDistribution(tuple(range(4)))


@pytest.fixture
def study():
    """Makes studies of (values, choice of `a`) with a space of one decision; None stands for a failed trial."""

    def make(*results, directions=("maximize", "minimize")):
        made = optuna.create_study(directions=list(directions))
        for values, choice in results:
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            given = {"params": {"a": choice}, "distributions": {"a": CHOICES}}
            made.add_trial(create_trial(state=state, values=values, **given))
        return made

    return make


def test_hypervolume_grows_by_what_each_point_adds_up_to_the_worst_of_each_value(study):
    made = study(((1, 4), 0), ((3, 2), 1), (None, 0), ((2, 3), 2), ((4, 4), 3), ((3, 2), 1))
    found = hypervolume_course(made)
    assert found == {"reference": [1, 4], "final": 4, "course": [0, 4, 4, 4, 4]}


def test_the_final_hypervolume_is_that_of_all_points(study):
    points = [(5, 9), (1, 2), (3, 3), (2, 1), (4, 6), (0, 9), (5, 8)]
    found = hypervolume_course(study(*((point, 0) for point in points)))
    assert found["reference"] == [0, 9]
    assert found["course"][-1] == found["final"] == pytest.approx(hypervolume(points, (1, -1), (0, 9)))
    assert found["course"] == sorted(found["course"])
    assert found["final"] == 2 * 8 + 1 * 6 + 1 * 3 + 1 * 1  # strips from the best of the first value downwards


def test_one_objective_has_no_hypervolume(study):
    assert hypervolume_course(study(((1,), 0), directions=("maximize",))) is None
    assert hypervolume_course(study((None, 0))) is None


def searched(job, **section):
    toy = job(strategy={"name": "random"}, trials=40, **section)
    runner = toy.open()
    toy.run(runner, None)
    return runner, toy.config.keep


def test_of_one_objective_the_best_alone_is_kept_by_default(job):
    runner, keep = searched(job)
    (found,) = best(runner.study, runner.judge.space, keep)
    assert found.values == (runner.study.best_value,)


def test_of_several_objectives_the_whole_front_is_kept_by_default(job):
    runner, keep = searched(job, objective={"maximize": ["top1"], "minimize": ["macs"]})
    found = best(runner.study, runner.judge.space, keep)
    values = {tuple(entry["values"]) for entry in history(runner.study)}
    front = {one for one in values if not any(o != one and o[0] >= one[0] and o[1] <= one[1] for o in values)}
    assert {entry.values for entry in found} == front and len(front) > 1
    assert [entry.values[0] for entry in found] == sorted((one.values[0] for one in found), reverse=True)
    assert best(runner.study, runner.judge.space, 2) == found[:2]


@pytest.mark.filterwarnings("error")
def test_importance_with_several_objectives_is_that_of_good_first_values(study):
    """`b` decides which trials are the best, `a` which are the worst."""
    made = optuna.create_study(directions=["maximize", "minimize"])
    for a in range(4):
        for b in range(4):
            value = 10.0 * (b == 3) - 10.0 * (a == 0) + 0.01 * a
            given = {"params": {"a": a, "b": b}, "distributions": {"a": CHOICES, "b": CHOICES}}
            made.add_trial(create_trial(state=TrialState.COMPLETE, values=[value, 0.0], **given))
    shares = importance(made)
    assert shares["b"] > shares["a"]
